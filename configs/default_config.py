"""Every setting of HybridMedNet: its name, type, default and help text stand here and nowhere else.

Edit the defaults below, write a YAML file (see configs/*.yaml), or say `--set SECTION.key=value`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from configs.errors import ConfigError
from configs.section import Section

SAMPLE_FOLDER = "./data/sample_chest_xray"
SAMPLE_VOLUME_FOLDER = "./data/sample_chest_ct"

_Flat = tuple[PositiveInt, PositiveInt]
_Solid = tuple[PositiveInt, PositiveInt, PositiveInt]


def _setting(default: Any, help_text: str, **limits: Any) -> Any:
    return Field(default, description=help_text, **limits)


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
    task: Literal["multi_label", "multi_class", "binary"] = _setting(
        "multi_label", "multi_label: findings side by side; multi_class: exactly one; binary. Unset: as the data are."
    )
    input_size: PositiveInt | _Flat | _Solid = _setting(
        (224, 224),
        "Height and width (volumes: depth, height, width) the network is built for; follows DATA.image_size where only "
        "that is set.",
    )
    in_channels: Literal[1, 3] = _setting(3, "Channels of the network's input; images are converted.")
    num_classes: PositiveInt = _setting(14, "Outputs of the head; taken from the data where it is not set.")
    num_coarse_classes: PositiveInt = _setting(3, "Coarse outputs; follows coarse_groups where they are used.")
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
        "a head for another number of classes is left out. Published weights are not fetched then.",
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
    gradient_checkpointing: GradientCheckpointing = Field(
        default_factory=GradientCheckpointing, description="Recompute activations to save memory."
    )

    @field_validator("pretrained", mode="before")
    @classmethod
    def _bool_words(cls, value: Any) -> Any:
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
    min_learning_rate: float = _setting(0.0, "Where cosine and plateau end.", ge=0)
    weight_decay: float = _setting(1e-4, "Decoupled for adamw, L2 for sgd.", ge=0)
    momentum: float = _setting(0.9, "Momentum of sgd.", ge=0, lt=1)
    lr_scheduler: Literal["cosine", "onecycle", "plateau", "constant"] = _setting(
        "cosine", "How the learning rate goes on after the warm-up."
    )
    warmup_epochs: float = _setting(
        5, "Epochs of linear warm-up (parts of one are allowed); unset: a tenth of a run shorter than 10.", ge=0
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
        SAMPLE_FOLDER,
        "Folder or .npz; null or the sample folder: made if missing (volumes: null, this default or "
        f"{SAMPLE_VOLUME_FOLDER}).",
    )
    labels_file: str | None = _setting(None, "Labels CSV; null: labels.csv in data_dir.")
    format: Literal["auto", "csv", "nih", "folders", "medmnist"] = _setting("auto", "auto: recognised.")
    class_names: list[str] | None = _setting(None, "The classes, in order; null: taken from the data.")
    image_size: PositiveInt | _Flat | _Solid = _setting(
        224,
        "Side, or height and width, of the network's input in pixels; three numbers (depth, height, width) say that "
        "the data are volumes.",
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
    worker_timeout: float | None = _setting(
        300.0, "Seconds a data worker may take for one file before it is replaced; null: any time.", gt=0
    )
    max_worker_failures: NonNegativeInt = _setting(
        3, "How often in a run data workers that were killed or hung are replaced; each time the file is named."
    )
    train_split: float = _setting(0.7, "Share of patients to train on, where the data bring no split.", gt=0, lt=1)
    val_split: float = _setting(0.15, "Share of patients to validate on.", gt=0, lt=1)
    test_split: float = _setting(0.15, "Share of patients to test on.", ge=0, lt=1)
    allow_patient_overlap: bool = _setting(False, "Accept a split that has one patient on two sides.")
    allow_missing_images: bool = _setting(False, "Train without the listed files that are missing (counted).")
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
    sample_count: PositiveInt = _setting(
        1200, "Images to draw when the sample data are made; unset: 240 where they are volumes."
    )
    sample_size: int = _setting(
        128, "Their side in pixels; unset: 64 for volumes, which have half as many slices.", ge=64, le=512
    )


class LossSettings(Section):
    """What is minimised: masked, in float32, mean over valid labels."""

    section_name: ClassVar[str] = "LOSS"

    type: Literal["bce", "focal", "asymmetric", "cross_entropy"] = _setting(
        "bce", "cross_entropy goes with task: multi_class, and only with it."
    )
    pos_weight: Literal["auto"] | list[float] | None = _setting(
        None, "Weight of positives in bce: a list, or auto = negatives / positives of the training split."
    )
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


class CheckpointSettings(Section):
    """What is kept of a run."""

    section_name: ClassVar[str] = "CHECKPOINT"

    save_dir: str = _setting("./checkpoints", "One folder a run is made in here.")
    save_freq: NonNegativeInt = _setting(5, "Also keep epoch_NNNN.pth every so many epochs; 0: none.")
    save_every_steps: NonNegativeInt = _setting(
        0, "Also write last.pth every so many optimizer steps, for epochs of hours; 0: only when an epoch ends."
    )
    save_best: bool = _setting(True, "Keep best_model.pth by mean AUROC on the validation split.")
    on_save_error: Literal["stop", "continue"] = _setting(
        "stop", "A disk that is full or read-only. continue: say so and train on, with the files that are there."
    )


class LoggingSettings(Section):
    """What is said, where."""

    section_name: ClassVar[str] = "LOGGING"

    log_dir: str = _setting("./logs", "TensorBoard files, one folder per run.")
    tensorboard: bool = _setting(True, "Write TensorBoard scalars.")
    print_freq: PositiveInt = _setting(10, "Optimizer steps between plain log lines and scalars.")
    format: Literal["text", "json"] = _setting("text", "Log lines as text, or one JSON object per line.")
    progress: Literal["auto", "bar", "plain"] = _setting("auto", "auto: a bar on a terminal, lines elsewhere.")
    run_name: str | None = _setting(None, "Folder of the run; null: name, backbone, attention and time.")


class Config(Section):
    """All settings; two instances share nothing. See `from_yaml` for files and overrides."""

    MODEL: ModelSettings = Field(default_factory=ModelSettings)
    TRAIN: TrainSettings = Field(default_factory=TrainSettings)
    DATA: DataSettings = Field(default_factory=DataSettings)
    LOSS: LossSettings = Field(default_factory=LossSettings)
    CHECKPOINT: CheckpointSettings = Field(default_factory=CheckpointSettings)
    LOGGING: LoggingSettings = Field(default_factory=LoggingSettings)

    def __setstate__(self, state: Any) -> None:
        """From a pickle: of today's Config, which is empty before, or of the previous release's plain object."""
        if not self.__dict__ and "__pydantic_fields_set__" in state:
            super().__setstate__(state)
            return
        from configs.previous_release import restore

        restore(self, state)

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
        """Read a YAML file, then apply overrides such as 'TRAIN.batch_size=16'.

        Raises ConfigError that lists every problem of file and overrides at once.
        """
        from configs.loading import load_config

        return load_config(path, overrides)

    @classmethod
    def from_overrides(cls, overrides: list[str] | tuple[str, ...]) -> Config:
        """The defaults with overrides such as 'MODEL.backbone=resnet50'."""
        from configs.loading import load_config

        return load_config(None, overrides)

    def to_yaml(self) -> str:
        """Every setting, as YAML that `from_yaml` reads back to an equal Config.

        Settings that follow from others are left out while nobody has set or resolved them.
        """
        import yaml

        settings = self.model_dump(mode="json")
        for section, key in _DERIVED:
            if not self[section].is_set(key):
                del settings[section][key]
        return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)

    def image_shape(self) -> tuple[int, ...]:
        """(height, width) of the network's input, (depth, height, width) where it is a volume.

        From DATA.image_size and MODEL.input_size; one number is the side of an image, never of a volume.
        Raises ConfigError where both are given and differ.
        """
        data, model = _shape(self.DATA.image_size), _shape(self.MODEL.input_size)
        if self.DATA.is_set("image_size") and self.MODEL.is_set("input_size") and data != model:
            raise ConfigError(f"DATA.image_size {data} and MODEL.input_size {model} differ: set one, or both alike")
        return model if self.MODEL.is_set("input_size") else data

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
        from configs.consistency import find_problems

        return find_problems(self)

    def resolve(self, class_names: tuple[str, ...], exclusive: bool = False) -> Config:
        """A copy in which what depends on the data and on other settings is written out.

        class_names: the classes the data have; exclusive: each image has exactly one of them.
        Raises ConfigError where they contradict the settings.
        """
        from configs.consistency import resolve

        return resolve(self, class_names, exclusive)


# Settings whose default gives way to the data or to another setting; `resolve` writes them out.
_DERIVED = (
    ("MODEL", "task"),
    ("MODEL", "input_size"),
    ("MODEL", "num_classes"),
    ("MODEL", "num_coarse_classes"),
    ("DATA", "image_size"),
    ("DATA", "sample_count"),
    ("DATA", "sample_size"),
    ("LOSS", "type"),
    ("TRAIN", "warmup_epochs"),
)


def _shape(size: int | tuple[int, ...]) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else tuple(size)
