"""What settings mean together: rules over plain values, which `Config.problems` and `Config.resolve` put to its own.

Every rule gives sentences for the user, none where the values go together. A value that is None is still open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import PureWindowsPath

from configs.errors import ConfigError
from configs.fallbacks import SHAPE, Task

Shape = tuple[int, int] | tuple[int, int, int]

_LARGEST = {2: (89_478_485, "pixels"), 3: (1 << 29, "voxels")}  # as data take them; a network's input is no larger
COLUMN_ROLES = ("image", "labels", "patient_id", "split", "view", "age", "sex")
_LONGEST_NAME = 100  # a file system takes 255 bytes; the backbone and the time are added to a model's name


def split_problems(train: float, val: float, test: float) -> list[str]:
    """Shares of the patients that do not add up."""
    total = train + val + test
    if abs(total - 1) <= 1e-6:
        return []
    return [f"DATA.train_split + val_split + test_split is {total:g}: they must add up to 1"]


def task_problems(task: str | None, loss: str | None, hierarchical: bool) -> list[str]:
    """A loss or a head that is not for the task."""
    found = []
    exclusive = task == "multi_class"
    fitting = ("cross_entropy", "focal") if exclusive else ("bce", "focal", "asymmetric")
    if task is not None and loss is not None and loss not in fitting:
        fit = "cross_entropy or focal" if exclusive else "bce, focal or asymmetric"
        found.append(f"LOSS.type: '{loss}' does not fit MODEL.task '{task}': use {fit}")
    if hierarchical and task not in (None, "multi_label"):
        found.append(f"MODEL.hierarchical needs MODEL.task 'multi_label', not '{task}'")
    return found


def weight_problems(pos_weight: str | Sequence[float] | None, loss: str | None) -> list[str]:
    """Weights of positives that the loss does not take, or that are none."""
    found = []
    if pos_weight is not None and loss not in (None, "bce"):
        found.append(f"LOSS.pos_weight works with LOSS.type 'bce' only, not '{loss}'")
    if isinstance(pos_weight, list) and min(pos_weight, default=0) <= 0:
        found.append(f"LOSS.pos_weight {pos_weight}: weights must be positive")
    return found


def class_weight_problems(class_weight: str | Sequence[float] | None, task: str | None) -> list[str]:
    """Weights of exclusive classes that the task does not take, or that are none."""
    found = []
    if class_weight is not None and task not in (None, "multi_class"):
        found.append(
            f"LOSS.class_weight is for exclusive classes (MODEL.task 'multi_class'), not for '{task}': LOSS.pos_weight "
            "weighs the positives of findings"
        )
    if isinstance(class_weight, list) and min(class_weight, default=0) <= 0:
        found.append(f"LOSS.class_weight {class_weight}: weights must be positive, one for each class")
    return found


def positive_class_problems(positive: str | None, task: str | None, class_names: Sequence[str] | None) -> list[str]:
    """A positive class where there are not two exclusive ones, or which is neither of them."""
    if positive is None:
        return []
    if task not in (None, "multi_class"):
        return [
            f"DATA.positive_class is for two exclusive classes (MODEL.task 'multi_class'), not for '{task}': leave it "
            "null"
        ]
    if class_names is None:
        return []
    if len(class_names) != 2:
        return [
            f"DATA.positive_class {positive!r} is for two exclusive classes, and there are {len(class_names)}: of more "
            "than two the most probable one is called; leave it null"
        ]
    if positive not in class_names:
        return [f"DATA.positive_class: {positive!r} is neither {class_names[0]!r} nor {class_names[1]!r}"]
    return []


# What people call those who do not have it, in letters only and in lower case.
_NEGATIVE = {
    *(
        "normal",
        "normals",
        "negative",
        "neg",
        "healthy",
        "control",
        "controls",
        "nofinding",
        "nofindings",
        "none",
        "no",
    ),
    *("absent", "absence", "without", "benign", "background", "other", "others", "false", "nodisease", "unremarkable"),
    *("正常", "阴性", "健康", "对照", "无", "良性", "未见异常", "无异常", "无病", "否"),
}
_NEGATING = ("non", "no", "not", "without", "un", "非", "无", "未")


def means_none(class_name: str) -> bool:
    """Whether a class is that of those who have nothing: 'No Finding', 'normal', '正常'."""
    word = "".join(filter(str.isalnum, class_name.casefold()))
    return word in _NEGATIVE - {"other", "others", "background", "benign", "良性"}


def positive_class_of(class_names: Sequence[str]) -> str:
    """Of two exclusive classes the positive one: not the one that is called normal, negative or the like.

    'no tumour' is negative beside 'tumour', and so is '0' beside '1'; where the names do not tell, it is the second.
    """
    one, other = ("".join(filter(str.isalnum, name.casefold())) for name in class_names)
    negative = [word in _NEGATIVE or word == "0" for word in (one, other)]
    if negative[0] == negative[1]:
        negative = [word in {f"{prefix}{rest}" for prefix in _NEGATING} for word, rest in ((one, other), (other, one))]
    return class_names[0] if negative == [False, True] else class_names[1]


def weights_problems(pretrained: bool | str, init_from: str | None, pruning: str) -> list[str]:
    """Two sources of weights, or pruning without any."""
    found = []
    if init_from is not None and isinstance(pretrained, str):
        found.append(
            "MODEL.init_from and a file in MODEL.pretrained: the first brings the backbone too, set one of them"
        )
    if pruning != "none" and init_from is None:
        found.append("TRAIN.pruning is for trained weights: name them by MODEL.init_from")
    return found


def study_problems(
    aggregator: str | None,
    view_kinds: Sequence[str] | None,
    backbones: str,
    checkpointing: bool,
    fusion: str | None,
    table_columns: Mapping[str, str | int] | None,
) -> list[str]:
    """Kinds of views or columns for a network that has no use for them, or none for one that has."""
    found = []
    if view_kinds is not None:
        if aggregator is None and len(view_kinds) > 1:
            found.append(
                f"MODEL.view_kinds names {len(view_kinds)} kinds of views, but MODEL.views.aggregator is null: set it "
                "to max, mean, attention, cross_attention or learned_weight, or leave view_kinds null"
            )
        if not view_kinds or len(set(view_kinds)) < len(view_kinds):
            found.append(f"MODEL.view_kinds {list(view_kinds)}: name at least one kind of view, each once")
    if backbones == "separate" and aggregator is None:
        found.append("MODEL.views.backbones 'separate' is for studies of several views: set MODEL.views.aggregator")
    if backbones == "separate" and checkpointing:
        found.append(
            "MODEL.gradient_checkpointing is not planned for MODEL.views.backbones 'separate': set enabled to false, "
            "or backbones to shared"
        )
    if table_columns and fusion is None:
        found.append(
            f"MODEL.table_columns names {len(table_columns)} columns, but MODEL.table.fusion is null: set it to "
            "concatenate, gated, attention, cross_attention or bilinear, or leave table_columns null"
        )
    if fusion is not None and table_columns == {}:
        found.append(f"MODEL.table.fusion is '{fusion}', but MODEL.table_columns names no column: set fusion to null")
    return found


def compile_problems(quantization_aware: bool, compiled: bool) -> list[str]:
    """Training for int8, whose fake quantisation torch.compile does not take."""
    if quantization_aware and compiled:
        return ["TRAIN.quantization_aware and TRAIN.compile do not go together: set one of them to false"]
    return []


def cache_problems(cache: str, cache_dir: str | None, cache_check: str) -> list[str]:
    """Settings of a cache on the disk for one that is not there."""
    set_in_vain = {"cache_dir": cache_dir is not None, "cache_check": cache_check != "stat"}
    return [
        f"DATA.{key} is for DATA.cache 'disk', not '{cache}': set one of them"
        for key, given in set_in_vain.items()
        if given and cache != "disk"
    ]


def table_problems(
    class_names: Sequence[str] | None,
    class_titles: Mapping[str, str] | None,
    columns: Mapping[str, str | None] | None,
    ignore_columns: Sequence[str] | None,
    encoding: str | None,
) -> list[str]:
    """What is said of a table of labels, and cannot be."""
    found = []
    unknown = [role for role in columns or {} if role not in COLUMN_ROLES]
    if unknown:
        found.append(f"DATA.columns: {', '.join(map(repr, unknown))} is not one of {', '.join(COLUMN_ROLES)}")
    twice = [name for name, count in Counter(name for name in (columns or {}).values() if name).items() if count > 1]
    found += [f"DATA.columns: {name!r} cannot be two things" for name in twice]
    both = [name for name in ignore_columns or () if name in (class_names or ())]
    found += [
        f"DATA.ignore_columns and DATA.class_names both name {name!r}: it is a class or it is not" for name in both
    ]
    if class_names is not None:
        strangers = [name for name in class_titles or {} if name not in class_names]
        found += [f"DATA.class_titles: {name!r} is no class ({', '.join(class_names[:20])})" for name in strangers]
    titles = [
        title for title, count in Counter((class_titles or {}).values()).items() if count > 1 or not title.strip()
    ]
    found += [f"DATA.class_titles: {title!r} must be a text, and of one class" for title in titles]
    if encoding is not None:
        try:
            b"".decode(encoding)
        except (LookupError, ValueError):  # a null character in it is a ValueError
            found.append(f"DATA.encoding: {encoding!r} is no text encoding: utf-8, gb18030, big5, utf-16, cp1252, …")
    return found


def channel_problems(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> list[str]:
    """A normalisation for another number of channels, or by nothing."""
    found = [
        f"DATA.{key} has {len(values)} values for MODEL.in_channels={channels}"
        for key, values in (("mean", mean), ("std", std))
        if values is not None and len(values) not in (1, channels)
    ]
    return [*found, f"DATA.std {std} must be positive"] if std and min(std) <= 0 else found


def name_problems(model_name: str, run_name: str | None) -> list[str]:
    """Names that become a folder's, and are a path or longer than a file system takes."""
    names = {"MODEL.name": model_name.replace("/", "_"), "LOGGING.run_name": run_name}
    return [
        f"{key}: {name!r} is not allowed: one folder's name, without a path, of at most {_LONGEST_NAME} characters"
        for key, name in names.items()
        if name and (PureWindowsPath(name).name != name or name == ".." or not name.isprintable() or _too_long(name))
    ]


def _too_long(name: str) -> bool:
    return len(name.encode()) > _LONGEST_NAME


def size_problems(shape: Shape) -> list[str]:
    """An input that is larger than any image the data may give."""
    most, what = _LARGEST[len(shape)]
    if prod(shape) <= most:
        return []
    return [f"DATA.image_size {shape} has {prod(shape):,} {what}: at most {most:,} are possible"]


def input_problems(
    sizes: tuple[int | Shape | None, int | Shape | None],
    window: tuple[float, float] | None,
    spacing_mm: tuple[float, ...] | None,
    resize: str,
    channels_last: str | bool,
    albumentations: bool,
    augment_on: str,
) -> list[str]:
    """Settings that do not go with the input's shape: one too large, or those of images for volumes and vice versa.

    sizes: DATA.image_size and MODEL.input_size.
    """
    try:
        shape = shape_of(*sizes)
    except ConfigError as error:
        return [*window_problems(window), str(error)]
    volumes = len(shape) == 3
    kind = (
        volume_problems(resize, channels_last, albumentations, window)
        if volumes
        else image_problems(window, spacing_mm)
    )
    return [*size_problems(shape), *kind, *augmentation_problems(augment_on, volumes, albumentations)]


def volume_problems(
    resize: str, channels_last: str | bool, albumentations: bool, window: tuple[float, float] | None
) -> list[str]:
    """Settings of images where the data are volumes, and a window that is none."""
    found = window_problems(window)
    if resize != "stretch":
        found.append(f"DATA.resize '{resize}' is for images: DATA.spacing_mm keeps a volume's proportions")
    if channels_last is True:
        found.append("TRAIN.channels_last true is for images: leave it auto or false with volumes")
    if albumentations:
        found.append("DATA.use_albumentations is for images: leave it false with volumes")
    return found


def image_problems(window: tuple[float, float] | None, spacing_mm: tuple[float, ...] | None) -> list[str]:
    """Settings of volumes where the data are images."""
    return window_problems(window) + [
        f"DATA.{key} is for volumes: set DATA.image_size=[depth, height, width], or {key} to null"
        for key, value in (("spacing_mm", spacing_mm), ("window", window))
        if value is not None
    ]


def window_problems(window: tuple[float, float] | None) -> list[str]:
    """A window without values in it."""
    return [] if window is None or window[0] < window[1] else [f"DATA.window {window}: low must be below high"]


def augmentation_problems(augment_on: str, volumes: bool, albumentations: bool) -> list[str]:
    """An augmentation that the device cannot do."""
    if augment_on != "device" or not (volumes or albumentations):
        return []
    other = "volumes" if volumes else "DATA.use_albumentations"
    return [f"DATA.augment_on 'device' is for the light augmentation of images, not {other}: use auto or cpu"]


def shape_of(image_size: int | Shape | None, input_size: int | Shape | None) -> Shape:
    """The input's shape from DATA.image_size and MODEL.input_size, either of which may be open.

    Raises ConfigError where both are given and differ.
    """
    data, model = _shape(image_size), _shape(input_size)
    if data and model and data != model:
        raise ConfigError(f"DATA.image_size {data} and MODEL.input_size {model} differ: set one, or both alike")
    return data or model or SHAPE


def _shape(size: int | Shape | None) -> Shape | None:
    return (size, size) if isinstance(size, int) else size


def check_classes(num_classes: int | None, wanted: Sequence[str] | None, class_names: Sequence[str]) -> None:
    """ConfigError where MODEL.num_classes or DATA.class_names (`wanted`) are given and the data have other classes."""
    if wanted is not None and list(wanted) != list(class_names):
        raise ConfigError(
            f"DATA.class_names are {', '.join(wanted[:20])}, but the data have {', '.join(class_names[:20])}: "
            "leave them null, or name those of the data"
        )
    if num_classes not in (None, len(class_names)):
        raise ConfigError(
            f"MODEL.num_classes is {num_classes}, but the data have {len(class_names)} classes "
            f"({', '.join(class_names[:20])}): leave it null, or name the classes in DATA.class_names"
        )


def task_of(task: Task | None, count: int, exclusive: bool) -> Task:
    """The task, where it is null that of the data. exclusive: each image has exactly one of `count` classes.

    Raises ConfigError where it is binary and the data have not one class.
    """
    if task == "binary" and count != 1:
        raise ConfigError(f"MODEL.task 'binary' needs one class, the data have {count}: use multi_class")
    return task or ("multi_class" if exclusive else "binary" if count == 1 else "multi_label")


def check_groups(
    groups: Mapping[str, Sequence[str]] | None, num_coarse_classes: int | None, class_names: Sequence[str]
) -> int:
    """The number of coarse classes; ConfigError where MODEL.coarse_groups or num_coarse_classes contradict the data."""
    for name, members in (groups or {}).items():
        unknown = sorted(set(members) - set(class_names))
        if unknown or not members:
            raise ConfigError(
                f"MODEL.coarse_groups: '{name}' names {unknown or 'nothing'}; the classes are {', '.join(class_names)}"
            )
    count = len(groups) if groups else 2
    if num_coarse_classes not in (None, count):
        raise ConfigError(
            f"MODEL.num_coarse_classes is {num_coarse_classes}, but MODEL.coarse_groups makes {count}: "
            "leave num_coarse_classes null, or name as many groups"
        )
    return count
