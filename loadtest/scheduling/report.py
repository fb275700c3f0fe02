"""The figures as a table, and as pictures where matplotlib is there."""

from pathlib import Path

from scheduling.measures import Result

COLUMNS = (
    ("over_bound", "over bound", "{:.1%}"), ("full_p50_s", "full p50 s", "{:.1f}"),
    ("full_p99_s", "full p99 s", "{:.1f}"), ("share_error", "share error", "{:.3f}"),
    ("utilisation", "utilisation", "{:.1%}"), ("waited_gpu_s", "GPU s waited", "{:.0f}"),
)  # fmt: skip

Results = dict[str, dict[str, Result]]
"""By workload, by policy."""


def table(results: Results) -> str:
    """Return the figures for people."""
    head = f"{'workload':14} {'policy':18}" + "".join(f"{title:>14}" for _, title, _ in COLUMNS)
    lines = [head, "-" * len(head)]
    for workload, policies in results.items():
        for policy, measures in policies.items():
            cells = "".join(f"{form.format(measures.as_dict()[name]):>14}" for name, _, form in COLUMNS)
            lines.append(f"{workload:14} {policy:18}{cells}")
    return "\n".join(lines)


def plots(results: Results, place: Path) -> list[Path]:
    """Draw one picture for each measure; returns the files, none without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return []
    mpl.use("Agg")
    from matplotlib import pyplot

    place.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(2, 3, figsize=(15, 8))
    workloads = list(results)
    policies = list(next(iter(results.values())))
    width = 0.8 / len(policies)
    for axis, (name, title, _) in zip(axes.flat, COLUMNS, strict=True):
        for number, policy in enumerate(policies):
            values = [results[workload][policy].as_dict()[name] for workload in workloads]
            axis.bar([at + number * width for at in range(len(workloads))], values, width, label=policy)
        axis.set_xticks([at + 0.4 - width / 2 for at in range(len(workloads))], workloads)
        axis.set_title(title)
    axes.flat[0].legend()
    figure.tight_layout()
    path = place / "policies.png"
    figure.savefig(path, dpi=110)
    return [path]
