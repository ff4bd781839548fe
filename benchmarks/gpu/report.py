"""Results as Markdown, and in a line."""

from collections.abc import Iterator
from typing import Any

Record = dict[str, Any]


def in_short(record: Record) -> str:
    """A record in a line."""
    for kind in ("failed", "wrong"):
        if kind in record:
            return f"{kind.upper()}: {str(record[kind]).strip().splitlines()[-1][:200]}"
    for kind in ("absent", "skipped"):
        if kind in record:
            return f"{kind}: {str(record[kind])[:120]}"
    if "us_per_step" in record:
        ratio = record.get("ratio")
        return (f"{_times(record['us_per_step'])}   " + (_ratios(ratio) if ratio else "")).strip()
    if "worst" in record:
        return f"worst {_number(record['worst'])} in {record['where']}, {record['cases']} cases"
    if "us" in record:
        return f"{record['us']:.2f} us a step, {record['blocks']} blocks"
    if "text" in record:
        return f"{len(record['text'])} lines"
    return ", ".join(f"{name} {_number(value)}" for name, value in record.items())[:160]


def markdown(found: Record) -> str:
    """The whole report."""
    parts = found["sections"]
    lines = []
    if found["emulated"]:
        lines += ["**Emulated, at tiny sizes: the times mean nothing.**", ""]
    lines += [f"# {_heading(parts)}", "", f"{found['begun']}. {_versions(parts)}", ""]
    for name, show in _SHOWN.items():
        if name in parts:
            lines += [f"## {name.capitalize()}", "", *show(parts[name]), ""]
            lines += [*_not_there(parts[name]), ""]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def bad(found: Record) -> list[str]:
    """The items that failed, or gave wrong numbers."""
    return [
        f"{section}: {item}"
        for section, records in found["sections"].items()
        for item, record in records.items()
        if "failed" in record or "wrong" in record
    ]


# ---- the sections


def _heading(parts: Record) -> str:
    device = parts.get("environment", {}).get("device", {}).get("device", "a GPU")
    return f"The CUDA engine on {device}"


def _versions(parts: Record) -> str:
    known = parts.get("environment", {}).get("versions", {})
    known = known if _what_is_missing(known) is None else {}
    shown = (f"{name} {value}" for name, value in known.items() if name != "seconds")
    return ", ".join(shown) or "Versions: see the section environment"


def _first(records: Record) -> list[str]:
    """Which kernels are right, and how long a step of a persistent LSTM and its parts take."""
    lines = [f"- {item}: {in_short(r)}" for item, r in _complete(records, "worst")]
    lines += [
        "",
        "Microseconds a step of a persistent LSTM; of its parts, the others left out.",
        "",
    ]
    columns = "barrier", "exchange", "product"
    lines += [
        f"| T, N, H / precision / way | blocks | predicted | us | {' | '.join(columns)} |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for item, r in _complete(records, "us"):
        kind, _, rest = item.partition("/")
        if kind == "time":
            parts = (records.get(f"parts/{rest}/{part}", {}).get("us") for part in columns)
            shown = " | ".join("" if us is None else f"{us:.2f}" for us in parts)
            predicted = f"{r['predicted_us']:.1f}"
            lines.append(f"| {rest} | {r['blocks']} | {predicted} | {r['us']:.2f} | {shown} |")
    return lines


def _profile(records: Record) -> list[str]:
    """The figures of Nsight Compute for one launch."""
    lines = []
    for item, r in _complete(records, "text"):
        lines += [f"{item}:", "", *(f"    {line}" for line in r["text"]), ""]
    return lines


def _speed(records: Record) -> list[str]:
    """A row for each cell, size and precision."""
    lines = [
        "Microseconds a step; a ratio is torch's time over ours, above 1 we are faster.",
        "",
        "| cell | T, N, H | precision | ours fwd | ours fwd+bwd | torch fwd | torch fwd+bwd "
        "| ratio fwd | ratio fwd+bwd | by steps fwd+bwd | peer | layout |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---|---|",
    ]
    losing, behind = 0, []
    for item, r in _complete(records, "us_per_step"):
        times, peer = r["us_per_step"], r.get("peer", "")
        both = [*_pair(times.get("ours")), *_pair(times.get(peer)), *_pair(r.get("ratio"), 2)]
        steps = _pair(times.get("steps"))[1]
        layout = "; ".join(f"{way}: {why}" for way, why in r["layout"].items())
        lines.append(
            f"| {r['cell']} | {r['T']}, {r['N']}, {r['H']} | {r['precision']} | "
            f"{' | '.join(both)} | {steps} | {peer} | {layout} |"
        )
        slower = [way for way, ratio in r.get("ratio", {}).items() if ratio < 1]
        losing += bool(slower)
        behind += [f"{item} ({', '.join(slower)})"] if slower else []
    compared = sum("ratio" in r for _, r in _complete(records, "us_per_step"))
    lines += ["", f"Losing rows: {losing} of {compared}. {'; '.join(behind)}".rstrip()]
    notes = [f"- {item}: {'; '.join(r['notes'])}" for item, r in records.items() if "notes" in r]
    return [*lines, "", *notes]


def _correctness(records: Record) -> list[str]:
    """A row for each kind and precision: the worst of its cells."""
    groups: dict[str, list[tuple[str, Record]]] = {}
    for item, record in _complete(records, "worst"):
        groups.setdefault(item.rsplit("/", 1)[0], []).append((item, record))
    lines = [
        "| group | cases | worst | allowed | where | kernels |",
        "|---|---:|---:|---:|---|---|",
    ]
    for group, members in groups.items():
        item, worst = max(members, key=lambda pair: float(pair[1]["worst"]))
        cases = sum(record["cases"] for _, record in members)
        ran = sorted({name for _, record in members for name in record["kernels"]})
        kernels = f"{len(ran)}, such as {', '.join(ran[:2])}" if ran else "none"
        lines.append(
            f"| {group} | {cases} | {_number(worst['worst'])} | {_number(worst['limit'])} | "
            f"{item.rsplit('/', 1)[1]}: {worst['where']} | {kernels} |"
        )
    return lines


def _peers(records: Record) -> list[str]:
    """The LSTM against each."""
    lines = [
        "| peer | ours fwd | ours fwd+bwd | peer fwd | peer fwd+bwd | ratio | what |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    for item, r in _complete(records, "us_per_step"):
        times = r["us_per_step"]
        numbers = " | ".join([*_pair(times.get("ours")), *_pair(times.get("peer"))])
        lines.append(f"| {item} | {numbers} | {_ratios(r['ratio'])} | {r['note']} |")
    return lines


def _plain(records: Record) -> list[str]:
    """A line each."""
    shown = []
    for item, record in records.items():
        if _what_is_missing(record) is None:
            fields = (
                f"{name} {_number(value)}" for name, value in record.items() if name != "seconds"
            )
            shown.append(f"- {item}: {', '.join(fields)}")
    return shown


def _environment(records: Record) -> list[str]:
    """The device's numbers and what ``explain`` says."""
    text = records.get("engine", {}).get("text", [])
    return [*_plain({"device": records.get("device", {})}), "", *(f"    {line}" for line in text)]


_SHOWN = {
    "first": _first,
    "speed": _speed,
    "correctness": _correctness,
    "others": _correctness,
    "peers": _peers,
    "profile": _profile,
    "training": _plain,
    "memory": _plain,
    "launch": _plain,
    "compile": _plain,
    "sanitizer": _plain,
    "environment": _environment,
}


# ---- what they share


def _complete(records: Record, key: str) -> Iterator[tuple[str, Record]]:
    return ((item, record) for item, record in records.items() if key in record)


def _what_is_missing(record: Record) -> str | None:
    kinds = ("failed", "wrong", "absent", "skipped")
    return next((kind for kind in kinds if kind in record), None)


def _not_there(records: Record) -> list[str]:
    """Lines on the items that failed, are wrong, absent or skipped."""
    lines, skipped = [], []
    for item, record in records.items():
        kind = _what_is_missing(record)
        if kind == "skipped":
            skipped.append(item)
        elif kind is not None:
            text = str(record[kind]).strip()
            text = text.splitlines()[-1] if kind == "failed" else " ".join(text.split())
            lines.append(f"- **{kind}** {item}: {text[:400]}")
    if skipped:
        why = records[skipped[0]]["skipped"]
        lines.append(f"- **skipped**, {why}: {', '.join(skipped)}")
    return lines


def _pair(times: Record | None, digits: int = 1) -> list[str]:
    """Forward and both."""
    if not times:
        return ["", ""]
    return [f"{times[way]:.{digits}f}" for way in ("forward", "both")]


def _times(per_step: Record) -> str:
    return "  ".join(
        f"{who} {'/'.join(f'{took:.1f}' for took in times.values())}"
        for who, times in per_step.items()
    )


def _ratios(ratio: Record) -> str:
    return f"{ratio['forward']:.2f} / {ratio['both']:.2f}"


def _number(value: Any) -> str:
    """Short."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_number(one)}" for name, one in value.items()) + "}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
