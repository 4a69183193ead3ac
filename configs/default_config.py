"""Every setting of HybridMedNet: its name, type, default and help text are defined here and nowhere else.

Edit the defaults below, write a YAML file (see configs/*.yaml), or pass `--set SECTION.key=value`: all count alike.
Where a setting follows from others or from the data, its default is null, and `Config.resolve` fills it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from configs import (
    attention_settings,
    consistency,
    fallbacks,
    logging_settings,
    plausibility,
    recipe_settings,
    study_consistency,
)
from configs.attention_settings import AttentionSupervision
from configs.best_by import best_by_problems
from configs.fallbacks import SAMPLE_IMAGES, SAMPLE_STUDIES, SAMPLE_VOLUMES, is_sample_studies
from configs.loading import RootSection
from configs.logging_settings import LoggingSettings
from configs.section import Section
from configs.section import setting as _setting
from configs.study_settings import ClinicalTableSettings, TableSettings, ViewSettings

_Flat = tuple[PositiveInt, PositiveInt]
_Solid = tuple[PositiveInt, PositiveInt, PositiveInt]


class GradientCheckpointing(Section):
    """Recompute activations in the backward pass instead of keeping them."""

    section_name: ClassVar[str] = "MODEL.gradient_checkpointing"

    enabled: bool = _setting(False, "Trade compute for memory; results are the same, bit for bit.")
    segments: Literal["auto"] | PositiveInt = _setting(
        "auto", "Runs the blocks are cut into, the last one kept. auto: the least recomputation that fits the budget."
    )
    fraction: float = _setting(
        1.0, "At most this share of the blocks is recomputed, from the first on: less time, less saving.", gt=0, le=1
    )
    memory_budget_gb: float | None = _setting(
        None, "For saved activations of a micro-batch, in 1e9 bytes; null: the least there can be.", gt=0
    )


class ModelSettings(Section):
    """The network: backbone → (FPN) → attention → fusion → head."""

    section_name: ClassVar[str] = "MODEL"

    name: str = _setting("HybridMedNet", "Name of the model; begins the name of a run's folder.")
    task: Literal["multi_label", "multi_class", "binary"] | None = _setting(
        None, "multi_label: findings side by side; multi_class: exactly one; binary. null: as the data are."
    )
    input_size: PositiveInt | _Flat | _Solid | None = _setting(
        None,
        "Height and width (volumes: depth, height, width) the network is built for; null: DATA.image_size.",
    )
    in_channels: Literal[1, 3] = _setting(3, "Channels of the network's input; images are converted.")
    num_classes: PositiveInt | None = _setting(
        None, f"Outputs of the head; null: as many as the data have classes (without data {fallbacks.CLASSES})."
    )
    num_coarse_classes: PositiveInt | None = _setting(
        None,
        f"Coarse outputs; null: as many as coarse_groups, of which there are 2 by default (without data "
        f"{fallbacks.COARSE_CLASSES}).",
    )
    coarse_groups: dict[str, list[str]] | None = _setting(
        None, "Coarse class → its findings. Null: 'any finding' and 'no finding'."
    )
    backbone: str = _setting(
        "convnext_base", "Any name that models.backbones.list_backbones() gives, or timm/<any name of timm's>."
    )
    pretrained: bool | str = _setting(True, "true: the published weights; false: random; or a path to a file.")
    init_from: str | None = _setting(
        None,
        "Checkpoint or weights of a whole HybridMedNet to start from (.pth, the previous release's too, .safetensors); "
        "of its head the rows of classes and coarse classes of the same name. Published weights are not fetched then.",
    )
    fpn: Literal["auto"] | bool = _setting("auto", "Feature pyramid network; auto: for classic ResNets.")
    fpn_channels: PositiveInt = _setting(256, "Channels of every level of the feature pyramid network.")
    fusion_channels: PositiveInt = _setting(512, "Channels after fusion: the width of the vector the head reads.")
    fusion_stride: Literal["auto", 4, 8, 16, 32] = _setting(
        "auto", "Stride at which levels are fused; auto: 4 for classic ResNets, else 16."
    )
    dropout: float = _setting(0.5, "Dropout in the head.", ge=0, lt=1)
    drop_path: float = _setting(0.0, "Stochastic depth in the backbone.", ge=0, lt=1)
    hierarchical: bool = _setting(False, "A coarse output beside the findings, which feeds them.")
    attention: Literal["auto", "none", "cbam", "multi_scale", "cross_scale"] = _setting(
        "auto", "auto: CBAM for classic ResNets, else as the two switches below say."
    )
    use_modern_attention: bool = _setting(True, "With attention: auto. False: CBAM.")
    use_cross_scale_attention: bool = _setting(True, "With attention: auto. False: multi_scale.")
    num_heads: PositiveInt = _setting(8, "Heads of multi_scale and cross_scale attention.")
    norm: Literal["batch", "group"] = _setting(
        "batch", "Normalisation in fusion and head; group: for micro-batches too small for batch statistics."
    )
    views: ViewSettings = Field(default_factory=ViewSettings, description="Several images of a study.")
    view_kinds: list[str] | None = _setting(
        None, "With views.aggregator: the kinds of views, in the order of their numbers; null: taken from the data."
    )
    table: TableSettings = Field(default_factory=TableSettings, description="A row of a table beside the images.")
    table_columns: dict[str, Literal["numeric"] | PositiveInt] | None = _setting(
        None,
        "With table.fusion: the table's columns in their order, numeric or how many categories, others not counted; "
        "null: taken from the data.",
    )
    gradient_checkpointing: GradientCheckpointing = Field(
        default_factory=GradientCheckpointing, description="Recompute activations to save memory."
    )

    @field_validator("pretrained", mode="before")
    @classmethod
    def _bool_words(cls, value: object) -> object:
        return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


class Pruning(Section):
    """Removing weights before fine-tuning."""

    section_name: ClassVar[str] = "TRAIN.pruning"

    method: Literal["none", "unstructured", "structured"] = _setting(
        "none",
        "Of MODEL.init_from, unstructured: the smallest weights are zero and stay zero in training; structured: whole "
        "channels of the backbone are taken out.",
    )
    amount: float = _setting(0.5, "Share of weights, the head apart, or of each layer's channels.", gt=0, lt=1)


class TrainSettings(Section):
    """The optimisation."""

    section_name: ClassVar[str] = "TRAIN"

    batch_size: PositiveInt = _setting(32, "Images in a micro-batch.")
    epochs: PositiveInt = _setting(50, "Passes over the training split.")
    optimizer: Literal["adamw", "sgd"] = _setting("adamw", "No weight decay on norms and biases in either.")
    learning_rate: float = _setting(1e-4, "Peak learning rate.", gt=0)
    study_learning_rate_factor: float = _setting(
        3.0, "The learning rate of what joins views and adds the table is so many times the others'.", gt=0, le=100
    )
    backbone_learning_rate_factor: float = recipe_settings.BACKBONE_FACTOR
    layer_decay: float = recipe_settings.LAYER_DECAY
    freeze: recipe_settings.Freeze = recipe_settings.FREEZE
    unfreeze_epoch: int | None = recipe_settings.UNFREEZE_EPOCH
    min_learning_rate: float = _setting(0.0, "Where cosine and plateau end.", ge=0)
    weight_decay: float = _setting(1e-4, "Decoupled for adamw, L2 for sgd.", ge=0)
    momentum: float = _setting(0.9, "Momentum of sgd.", ge=0, lt=1)
    lr_scheduler: Literal["cosine", "onecycle", "plateau", "constant"] = _setting(
        "cosine", "How the learning rate changes after the warm-up."
    )
    warmup_epochs: float | None = _setting(
        None,
        f"Epochs of linear warm-up (parts of one are allowed); null: {fallbacks.WARMUP_EPOCHS}, and a tenth of a run "
        f"shorter than {2 * fallbacks.WARMUP_EPOCHS}.",
        ge=0,
    )
    plateau_patience: PositiveInt = _setting(3, "plateau: epochs without a better score before a cut.")
    plateau_factor: float = _setting(0.3, "plateau: what the learning rate is multiplied by.", gt=0, lt=1)
    gradient_accumulation_steps: PositiveInt = _setting(1, "Micro-batches in one optimizer step.")
    gradient_clip_norm: float | None = _setting(1.0, "Largest global gradient norm; null: no clipping.", gt=0)
    mixed_precision: bool | Literal["auto", "bf16", "fp16"] = _setting(
        True,
        "true: bf16 where the hardware has it, else fp16 on CUDA, else float32; auto: that or float32, whichever "
        "is faster in a probe as training begins.",
    )
    ema_decay: float = _setting(0.0, "Decay of the moving average of weights used to evaluate; 0: none.", ge=0, lt=1)
    early_stopping_patience: NonNegativeInt = _setting(10, "Epochs without a better score; 0: never stop early.")
    on_oom: Literal["adapt", "stop"] = _setting(
        "adapt",
        "Out of memory, adapt: smaller micro-batches and gradient checkpointing, as many images in a step; stop: an "
        "error.",
    )
    max_nonfinite_steps: PositiveInt = _setting(10, "Steps in a row with NaN or Inf before the run stops.")
    channels_last: Literal["auto"] | bool = _setting(
        "auto", "Memory format; auto: what is faster in a probe as training begins; volumes are contiguous."
    )
    compile: bool = _setting(False, "torch.compile the model.")
    quantization_aware: bool = _setting(
        False, "Train for int8: forward passes of training round weights and inputs of layers; evaluation does not."
    )
    pruning: Pruning = Field(default_factory=Pruning, description="Weights that are zero while others are trained.")
    device: str = _setting("auto", "auto, cpu, cuda, cuda:1, mps.")
    seed: NonNegativeInt = _setting(0, "Seed of weights, splits, order and augmentation.")


class DataSettings(Section):
    """Images, labels, splits and how they become tensors."""

    section_name: ClassVar[str] = "DATA"

    data_dir: str | None = _setting(
        None,
        f"Folder or .npz; null: the sample data, {SAMPLE_IMAGES.folder} (volumes: {SAMPLE_VOLUMES.folder}), made if "
        f"missing, as {SAMPLE_STUDIES.folder} is.",
    )
    labels_file: str | None = _setting(None, "Table of labels, CSV, TSV or .xlsx; null: labels.* in data_dir.")
    format: Literal["auto", "csv", "nih", "folders", "medmnist"] = _setting("auto", "auto: recognised.")
    class_names: list[str] | None = _setting(None, "The classes, in order; null: taken from the data.")
    class_titles: dict[str, str] | None = _setting(
        None, "What classes are called in reports and plots: {class: title}; null: by their names."
    )
    columns: dict[str, str | None] | None = _setting(
        None,
        "The table's columns by what they are for: image, labels, patient_id, split, view, age, sex (null: there is "
        "none); null: known by their names. docs/data.md.",
    )
    ignore_columns: list[str] | None = _setting(
        None, "Columns of 1 and 0 that are no classes; null: those whose names say so."
    )
    study_column: str | None = _setting(
        None, "Column of the labels table: images with one value in it are one study; null: each stands alone."
    )
    view_kinds: dict[str, list[str]] | None = _setting(
        None, "Kind of view → values of the column view, others are 'other'; null: each value is a kind."
    )
    max_views: PositiveInt | None = _setting(
        None, "Images that a study may have, more are an error; null: as many as the largest study has, 32 at most."
    )
    required_views: list[str] = _setting([], "Kinds of view; studies that lack one of them are left out (counted).")
    table: ClinicalTableSettings = Field(
        default_factory=ClinicalTableSettings, description="Columns that the network is given beside the images."
    )
    encoding: str | None = _setting(None, "The table's character encoding, such as gb18030; null: where it is certain.")
    positive_class: str | None = _setting(
        None,
        "Of two exclusive classes the one that a threshold decides about and figures are of; null: not the one called "
        "normal, negative or the like, or else the second one.",
    )
    image_size: PositiveInt | _Flat | _Solid | None = _setting(
        None,
        "Side, or height and width, of the network's input in pixels; three numbers (depth, height, width) say that "
        f"the data are volumes. null: MODEL.input_size, or else {fallbacks.SHAPE[0]}.",
    )
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = _setting(
        None,
        "Volumes: resample to these millimetres (z, y, x), then crop or pad about the centre; null: fit the whole "
        "volume to image_size.",
    )
    window: tuple[float, float] | None = _setting(
        None,
        "Volumes: values (HU for CT) shown black and white, scaled to [0, 1]; null: 0.5 and 99.5 percentile of each.",
    )
    resize: Literal["stretch", "letterbox"] = _setting(
        "stretch", "Images: letterbox keeps the aspect and pads with black."
    )
    mean: list[float] | None = _setting(None, "Channel means of the [0, 1] image or volume; null: the backbone's.")
    std: list[float] | None = _setting(None, "Channel deviations; null: the backbone's.")
    num_workers: NonNegativeInt = _setting(4, "Processes that load; 0: the training process itself.")
    cache: Literal["none", "ram", "disk"] = _setting(
        "none",
        "Decode each image once, at image_size, and keep it: in memory that all workers share, or in a file for the "
        "next runs too. docs/data.md.",
    )
    cache_dir: str | None = _setting(
        None, "Folder of the cache on disk; null: .hybridmednet_cache in data_dir, or beside a .npz."
    )
    cache_check: Literal["stat", "content"] = _setting(
        "stat",
        "How the cache on disk sees that files have changed: stat, by size and times, and by content where these are "
        "others; content, by reading all of them.",
    )
    worker_timeout: float | None = _setting(
        300.0, "Seconds a data worker may take for one file before it is replaced; null: any time.", gt=0
    )
    max_worker_failures: NonNegativeInt = _setting(
        3, "How often in a run data workers that were killed or hung are replaced; each time the file is named."
    )
    train_split: float = _setting(0.7, "Share of patients to train on, where the data bring no split.", gt=0, lt=1)
    val_split: float = _setting(0.15, "Share of patients to validate on.", gt=0, lt=1)
    test_split: float = _setting(0.15, "Share of patients to test on.", ge=0, lt=1)
    split_file: str | None = _setting(
        None,
        "split.csv of another run on the same images: a new run takes its split, in place of the data's own or of a "
        "drawn one; null: none. docs/data.md.",
    )
    allow_patient_overlap: bool = _setting(False, "Accept a split that has one patient on two sides.")
    patient_ids: Literal["stop", "join", "exact"] = _setting(
        "stop",
        "Ids that may be one person's (007 and 7, P1 and p1): stop: an error names them; join: one patient; exact: "
        "different ones, each as it is written. docs/data.md.",
    )
    allow_missing_images: bool = _setting(False, "Train without the listed files that are missing (counted).")
    check_duplicates: bool = _setting(
        True,
        "Look for images of the same content when data are opened, and warn of splits and labels that they contradict; "
        "reads files of equal size. docs/data.md.",
    )
    max_bad_images: NonNegativeInt = _setting(0, "How many undecodable images to tolerate, each named.")
    uncertain_labels: Literal["ignore", "zeros", "ones", "smooth"] = _setting(
        "ignore", "What -1 means: masked, 0, 1, or a soft 0.55–0.85 in training (masked in evaluation)."
    )
    augment: bool = _setting(True, "Random changes of training images.")
    use_albumentations: bool = _setting(False, "Augment by albumentations instead of the light affine one.")
    augment_on: Literal["auto", "cpu", "device"] = _setting(
        "auto",
        "Where images are augmented: cpu, by the data workers; device, where the network is, a batch at a time (the "
        "light augmentation of images only); auto: the device where that can do it and is CUDA.",
    )
    horizontal_flip: float = _setting(
        0.0, "Probability of a mirror image; laterality matters in chest radiographs.", ge=0, le=1
    )
    sampling: recipe_settings.Sampling = recipe_settings.SAMPLING
    mixup: float = recipe_settings.MIXUP
    cutmix: float = recipe_settings.CUTMIX
    mix_probability: float = recipe_settings.MIX_PROBABILITY
    sample_count: PositiveInt | None = _setting(
        None,
        f"Images to draw when the sample data are made; null: {SAMPLE_IMAGES.count}, or "
        f"{SAMPLE_VOLUMES.count} volumes, or {SAMPLE_STUDIES.count} studies.",
    )
    sample_size: int | None = _setting(
        None,
        f"Their side in pixels; null: {SAMPLE_IMAGES.size}, or {SAMPLE_VOLUMES.size} for volumes, which have half as "
        f"many slices, or {SAMPLE_STUDIES.size} of studies.",
        ge=64,
        le=512,
    )
    sample_shortcut: bool = _setting(
        False,
        f"Of {SAMPLE_STUDIES.folder}: a second folder beside it, …_shortcut, where a mark of the hospital goes with "
        "pneumonia in training.",
    )


class LossSettings(Section):
    """What is minimised: masked, in float32, mean over valid labels."""

    section_name: ClassVar[str] = "LOSS"

    type: Literal["bce", "focal", "asymmetric", "cross_entropy"] | None = _setting(
        None,
        "cross_entropy goes with task: multi_class, and only with it; focal with every task. null: cross_entropy for "
        "multi_class, else bce.",
    )
    pos_weight: Literal["auto"] | list[float] | None = _setting(
        None, "Weight of positives in bce: a list, or auto = negatives / positives of the training split."
    )
    class_weight: Literal["auto"] | list[float] | None = _setting(
        None,
        "Exclusive classes: weight of each in cross_entropy and focal; a list, or auto = images / (classes · images of "
        "the class) in the training split.",
    )
    correct_prior: bool = recipe_settings.CORRECT_PRIOR
    label_smoothing: float = _setting(0.0, "Towards 0.5 (multi-label) or uniform (multi-class).", ge=0, lt=1)
    focal_gamma: float = _setting(2.0, "Focal loss: focusing exponent.", ge=0)
    asymmetric_gamma_positive: float = _setting(0.0, "Asymmetric loss: exponent on positives.", ge=0)
    asymmetric_gamma_negative: float = _setting(4.0, "Asymmetric loss: exponent on negatives.", ge=0)
    asymmetric_clip: float = _setting(0.05, "Asymmetric loss: probability margin on negatives.", ge=0, lt=1)
    coarse_weight: float = _setting(0.4, "Hierarchical: weight of the coarse loss.", ge=0)
    fine_weight: float = _setting(0.6, "Hierarchical: weight of the loss of the findings.", ge=0)
    consistency_weight: float = _setting(0.2, "Hierarchical: weight of coarse-fine disagreement.", ge=0)
    teacher: str | None = _setting(
        None, "Distillation: a checkpoint of this program for the same classes, which the network learns from as well."
    )
    distillation_weight: float = _setting(
        0.5, "Distillation: share of the teacher in the loss; the labels have the rest.", gt=0, le=1
    )
    distillation_temperature: float = _setting(
        2.0, "Distillation: both networks' logits are divided by it before they are compared.", gt=0
    )
    attention: AttentionSupervision = Field(
        default_factory=AttentionSupervision, description="Teach the network where to look."
    )


class CheckpointSettings(Section):
    """What is kept of a run."""

    section_name: ClassVar[str] = "CHECKPOINT"

    save_dir: str = _setting("./checkpoints", "One folder per run is created in here.")
    save_freq: NonNegativeInt = _setting(5, "Also keep epoch_NNNN.pth every so many epochs; 0: none.")
    save_every_steps: NonNegativeInt = _setting(
        0, "Also write last.pth every so many optimizer steps, for epochs of hours; 0: only when an epoch ends."
    )
    save_best: bool = _setting(True, "Keep best_model.pth, of the best epoch by best_by.")
    best_by: str | None = _setting(
        None,
        "Figure of the validation split that decides which epoch is the best, for best_model.pth, early stopping and "
        "plateau: mean_auroc, mean_average_precision, val_loss, or a class (its AUROC). null: mean_auroc, or val_loss "
        "where that is undefined for every class.",
    )
    on_save_error: Literal["stop", "continue"] = _setting(
        "stop",
        "A disk that is full or read-only. continue: log an error and continue training with the existing files.",
    )


class Config(RootSection):
    """All settings; two instances share nothing. See `from_yaml` for files and overrides."""

    MODEL: ModelSettings = Field(default_factory=ModelSettings)
    TRAIN: TrainSettings = Field(default_factory=TrainSettings)
    DATA: DataSettings = Field(default_factory=DataSettings)
    LOSS: LossSettings = Field(default_factory=LossSettings)
    CHECKPOINT: CheckpointSettings = Field(default_factory=CheckpointSettings)
    LOGGING: LoggingSettings = Field(default_factory=LoggingSettings)

    def image_shape(self) -> consistency.Shape:
        """(height, width) of the network's input, (depth, height, width) where it is a volume.

        From DATA.image_size and MODEL.input_size; one number is the side of an image, never of a volume.
        Raises ConfigError where both are given and differ.
        """
        return consistency.shape_of(self.DATA.image_size, self.MODEL.input_size)

    def has_volumes(self) -> bool:
        """Whether the data are volumes: whether `image_shape` has three numbers."""
        return len(self.image_shape()) == 3

    def without_pretrained(self) -> Config:
        """A copy for a model whose weights all come from a checkpoint."""
        config = self.model_copy(deep=True)
        config.MODEL.pretrained, config.MODEL.init_from = False, None
        config.TRAIN.pruning.method = "none"  # what was to be pruned is
        return config

    def problems(self) -> list[str]:
        """Contradictions between settings that are each fine alone; empty where there are none."""
        return [*self.problems_of_saved(), *self._problems_of_training()]

    def problems_of_saved(self) -> list[str]:
        """Those that no network can be built with, or no image be read: of a model's file too."""
        model, train, data, loss = self.MODEL, self.TRAIN, self.DATA, self.LOSS
        loss_type = loss.type or (model.task and fallbacks.loss_of(model.task))  # None while the data decide
        return [
            *consistency.split_problems(data.train_split, data.val_split, data.test_split),
            *consistency.task_problems(model.task, loss.type, model.hierarchical),
            *consistency.weight_problems(loss.pos_weight, loss_type),
            *consistency.class_weight_problems(loss.class_weight, model.task),
            *consistency.positive_class_problems(data.positive_class, model.task, data.class_names),
            *consistency.study_problems(
                model.views.aggregator,
                model.view_kinds,
                model.views.backbones,
                model.gradient_checkpointing.enabled,
                model.table.fusion,
                model.table_columns,
            ),
            *consistency.weights_problems(model.pretrained, model.init_from, train.pruning.method),
            *consistency.compile_problems(train.quantization_aware, train.compile),
            *consistency.cache_problems(data.cache, data.cache_dir, data.cache_check),
            *consistency.table_problems(
                data.class_names, data.class_titles, data.columns, data.ignore_columns, data.encoding
            ),
            *study_consistency.training_problems(
                model.views.aggregator, model.table.fusion, train.quantization_aware, train.pruning.method
            ),
            *study_consistency.study_problems(data.study_column, data.view_kinds, data.required_views, data.max_views),
            *study_consistency.clinical_problems(
                data.table.columns, data.table.file, data.class_names, data.columns, data.study_column
            ),
            *study_consistency.shortcut_problems(data.sample_shortcut, is_sample_studies(data.data_dir)),
            *consistency.channel_problems(data.mean, data.std, model.in_channels),
            *consistency.name_problems(model.name, self.LOGGING.run_name),
            *self._problems_of_size(),
        ]

    def _problems_of_training(self) -> list[str]:
        """Those that only a training has; see configs/plausibility.py."""
        model, train, data, loss = self.MODEL, self.TRAIN, self.DATA, self.LOSS
        shape = self.DATA.image_size or self.MODEL.input_size
        count = model.num_classes or (data.class_names and len(data.class_names)) or None
        return [
            *logging_settings.tracker_problems(self.LOGGING),
            *attention_settings.attention_problems(
                loss.attention,
                isinstance(shape, tuple) and len(shape) == 3,
                data.augment,
                data.use_albumentations,
                model.attention,
                train.compile,
                train.quantization_aware,
            ),
            *plausibility.normalisation_problems(data.mean, data.std),
            *plausibility.spacing_problems(data.spacing_mm, shape if isinstance(shape, tuple) else ()),
            *plausibility.rate_problems(
                train.optimizer, train.learning_rate, train.min_learning_rate, train.weight_decay, train.ema_decay
            ),
            *plausibility.schedule_problems(train.epochs, train.warmup_epochs),
            *recipe_settings.freezing_problems(
                train.freeze, train.unfreeze_epoch, train.epochs, model.init_from, loss.attention.trains
            ),
            *recipe_settings.sampling_problems(
                data.sampling,
                data.class_names,
                {"pos_weight": loss.pos_weight, "class_weight": loss.class_weight},
                loss.correct_prior,
            ),
            *recipe_settings.mixing_problems(
                data.mixup,
                data.cutmix,
                data.mix_probability,
                model.views.aggregator is not None or model.table.fusion is not None,
                model.hierarchical and loss.consistency_weight > 0,
                loss.attention.trains,
            ),
            *recipe_settings.rate_problems(
                train.freeze, train.unfreeze_epoch, train.backbone_learning_rate_factor, train.layer_decay
            ),
            *plausibility.patience_problems(train.lr_scheduler, train.plateau_patience, train.early_stopping_patience),
            *plausibility.weight_of_loss_problems(
                model.hierarchical, loss.fine_weight, loss.coarse_weight, loss.consistency_weight
            ),
            *plausibility.memory_problems(model.gradient_checkpointing.memory_budget_gb),
            *plausibility.class_problems(data.class_names, model.num_classes, model.coarse_groups),
            *best_by_problems(self.CHECKPOINT.best_by, data.class_names),
            *plausibility.list_problems(loss.pos_weight, "LOSS.pos_weight", count),
        ]

    def _problems_of_size(self) -> list[str]:
        data, last, sizes = self.DATA, self.TRAIN.channels_last, (self.DATA.image_size, self.MODEL.input_size)
        return consistency.input_problems(
            sizes, data.window, data.spacing_mm, data.resize, last, data.use_albumentations, data.augment_on
        )

    def resolve(
        self,
        class_names: Sequence[str],
        exclusive: bool = False,
        view_kinds: Mapping[str, Sequence[str]] | None = None,
        table_columns: Mapping[str, Literal["numeric", "categorical"]] | None = None,
    ) -> Config:
        """A copy in which what depends on the data and on other settings is written out where it is null.

        class_names: the classes the data have; exclusive: each image has exactly one of them. view_kinds,
        table_columns: of data with studies, see DATA.view_kinds and DATA.table.columns; None: as set.
        Raises ConfigError where they contradict the settings.
        """
        config = self.model_copy(deep=True)
        model, count = config.MODEL, len(class_names)
        consistency.check_classes(model.num_classes, config.DATA.class_names, class_names)
        model.task = consistency.task_of(model.task, count, exclusive)
        model.num_classes, config.DATA.class_names = count, list(class_names)
        if config.DATA.positive_class is None and model.task == "multi_class" and count == 2:
            config.DATA.positive_class = consistency.positive_class_of(class_names)
        if view_kinds is not None:
            config.DATA.view_kinds = {kind: list(values) for kind, values in view_kinds.items()}
        if table_columns is not None:
            config.DATA.table.columns = dict(table_columns)
        if model.hierarchical:
            model.num_coarse_classes = consistency.check_groups(
                model.coarse_groups, model.num_coarse_classes, class_names
            )
        return config.complete().check("with these data ")

    def resolve_studies(
        self, view_kinds: Sequence[str] | None, table_columns: Mapping[str, Literal["numeric"] | int] | None
    ) -> Config:
        """A copy with what the network of a study is built for; None: the data have no studies, or no table."""
        config = self.model_copy(deep=True)
        study_consistency.check_used(
            config.MODEL.views.aggregator, config.MODEL.table.fusion, view_kinds, table_columns
        )
        config.MODEL.view_kinds = None if view_kinds is None else list(view_kinds)
        config.MODEL.table_columns = None if table_columns is None else dict(table_columns)
        return config.check("with these data ")

    def complete(self) -> Config:
        """A copy without null where that stands for another value: what `resolve` does, without knowing the data.

        What only the data could decide comes from DATA.class_names, or else from configs/fallbacks.py: so
        HybridMedNet(Config()) has 14 classes. Raises ConfigError where DATA.image_size and MODEL.input_size differ.
        """
        config = self.model_copy(deep=True)
        model, data, train = config.MODEL, config.DATA, config.TRAIN
        sample = SAMPLE_VOLUMES if self.has_volumes() else SAMPLE_IMAGES
        sample = SAMPLE_STUDIES if is_sample_studies(data.data_dir) else sample
        model.input_size = data.image_size = self.image_shape()
        model.task = model.task or fallbacks.TASK
        model.num_classes = model.num_classes or fallbacks.class_count(model.task, data.class_names)
        coarse = len(model.coarse_groups or ()) or fallbacks.COARSE_CLASSES
        model.num_coarse_classes = model.num_coarse_classes or coarse
        data.data_dir = sample.folder if data.data_dir is None else data.data_dir
        data.sample_count, data.sample_size = data.sample_count or sample.count, data.sample_size or sample.size
        config.LOSS.type = config.LOSS.type or fallbacks.loss_of(model.task)
        if train.warmup_epochs is None:
            train.warmup_epochs = fallbacks.warmup_epochs(train.epochs)
        return config
