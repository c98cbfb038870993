"""The Markdown page of an evaluation of classification."""

from collections.abc import Sequence

from cubeloom.workflows.console import counted
from cubeloom.workflows.train.labelled import LabelledImage

from .class_splits import SplitGroup
from .classify import CONVENTIONS, ClassEvaluation, Mean
from .tables import closing, table

_SUMMARY = (
    ("overall_accuracy", "OA", "%"),
    ("average_accuracy", "AA", "%"),
    ("kappa", "kappa", "%"),
    ("macro_f1", "macro F1", "%"),
    ("macro_iou", "macro IoU", "%"),
    ("fit_seconds", "fit s", ""),
    ("map_seconds", "map s", ""),
    ("peak_mib", "memory MiB", ""),
)
_BOLD = ("overall_accuracy", "average_accuracy", "kappa", "macro_f1", "macro_iou")


def class_markdown(found: ClassEvaluation) -> str:
    """For each image and split the methods, then their F1 of every class; then inputs, methods and conventions."""
    parts = [f"# Classification: {counted(len(found.images), 'image')}, {counted(len(found.columns), 'method')}"]
    for image in found.images:
        for split in found.splits:
            runs = len(found.divisions[image.name][split.name])
            over = "one run" if runs == 1 else f"mean ± standard deviation over {runs} runs"
            parts += [f"## {image.name}: {split.name}", f"**{split.label}**; percent, {over}"]
            parts += [_summary(found, image, split), f"F1 of every class, percent; {split.label}"]
            parts += [_by_class(found, image, split)]
    parts += ["## Images", _images(found), "## Methods", _methods(found)]
    failed = [f"{s.method} on {s.image}, {s.split}, {s.run}: {s.error}" for s in found.scores if s.error]
    parts += closing(CONVENTIONS, failed)
    return "\n\n".join(parts) + "\n"


def _summary(found: ClassEvaluation, image: LabelledImage, split: SplitGroup) -> str:
    """A row a method; the best of each measure of quality is bold."""
    means = {
        (metric, column.name): found.mean(metric, image.name, split.name, column.name)
        for metric, _, _ in _SUMMARY
        for column in found.columns
    }
    rows = []
    for column in found.columns:
        failed = any(score.error for score in found.of(image.name, split.name, column.name))
        cells = []
        for metric, _, form in _SUMMARY:
            one = means[metric, column.name]
            top = best([means[metric, other.name] for other in found.columns]) if metric in _BOLD else None
            cells.append("failed" if failed else shown(one, form, bold=one is not None and one.mean == top))
        rows.append([column.label, *cells])
    return table(["method", *(title for _, title, _ in _SUMMARY)], rows)


def _by_class(found: ClassEvaluation, image: LabelledImage, split: SplitGroup) -> str:
    """A row a class, with its pixels in the first run; the best of each row is bold."""
    first = found.divisions[image.name][split.name][0]
    rows = []
    for place, one in enumerate(image.classes):
        means = [found.class_mean("f1", place, image.name, split.name, column.name) for column in found.columns]
        top = best(means)
        pixels = [str(int((image.labels[mask] == one.value).sum())) for mask in (first.train, first.test)]
        cells = [shown(mean, "%", bold=mean is not None and mean.mean == top) for mean in means]
        rows.append([one.name, *pixels, *cells])
    return table(["class", "train px", "test px", *(column.label for column in found.columns)], rows)


def _images(found: ClassEvaluation) -> str:
    rows = []
    for image in found.images:
        height, width = image.shape
        source = ", ".join(f"{key} {value}" for key, value in image.source.items())
        labelled = sum(image.counts.values())
        rows.append([image.name, f"{height} x {width}", str(len(image.cube)), str(labelled), source])
    return table(["image", "px", "bands", "labelled px", "source"], rows)


def _methods(found: ClassEvaluation) -> str:
    return "\n".join(f"- {column.label}: {column.method.what}" for column in found.columns)


def best(means: Sequence[Mean | None]) -> float | None:
    """The largest mean there is."""
    return max((one.mean for one in means if one is not None), default=None)


def shown(one: Mean | None, form: str, bold: bool = False) -> str:
    """A mean and its spread, as percent with two digits where the form is `%`."""
    if one is None:
        return "–"
    percent = form == "%"
    mean = f"{100 * one.mean:.2f}" if percent else _rounded(one.mean)
    spread = "" if one.spread is None else f" ± {f'{100 * one.spread:.2f}' if percent else _rounded(one.spread)}"
    return f"**{mean}**{spread}" if bold else f"{mean}{spread}"


def _rounded(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
