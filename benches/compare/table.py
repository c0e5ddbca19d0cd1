"""Figures as one table of medians, and as JSON."""

from statistics import median

LEGEND = "In parentheses: siphon's median over that one's (for IOPS the other way round); below 1, siphon is better."


def markdown(head, rows):
    """The lines of a Markdown table whose columns are aligned."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    for line in [head, ["-" * width for width in widths], *rows]:
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |"


class Figures:
    """What was measured and what failed, as it comes in."""

    def __init__(self):
        self.values = {}  # row -> peer -> figures
        self.failures = {}  # (work, peer) -> why

    def add(self, row, peer, value):
        self.values.setdefault(row, {}).setdefault(peer, []).append(value)

    def fail(self, work, peer, reason):
        """From here on the peer has no figure in any row of the work."""
        self.failures[work, peer] = reason

    def table(self, peers):
        """The lines of a Markdown table, then one for each failure."""
        rows = [[row.work, row.case, row.unit, *(self._cell(row, peer) for peer in peers)] for row in self.values]
        yield from markdown(["work", "case", "unit", *peers], rows)
        yield ""
        yield LEGEND
        for (work, peer), reason in self.failures.items():
            yield f"failed: {work}, {peer}: {reason}"

    def _median(self, row, peer):
        values = self.values[row].get(peer)
        return median(values) if values and (row.work, peer) not in self.failures else None

    def _cell(self, row, peer):
        value, siphon = self._median(row, peer), self._median(row, "siphon")
        if value is None:
            return "failed" if (row.work, peer) in self.failures else "-"
        text = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
        if peer == "siphon" or not siphon or not value:
            return text
        ratio = value / siphon if row.more_is_better else siphon / value
        return f"{text} ({ratio:.2f})"

    def raw(self):
        """The same without medians, for JSON."""
        return {
            "figures": [
                {"work": row.work, "case": row.case, "unit": row.unit, "peer": peer, "values": values}
                for row, by_peer in self.values.items()
                for peer, values in by_peer.items()
                if (row.work, peer) not in self.failures
            ],
            "failures": [
                {"work": work, "peer": peer, "reason": reason} for (work, peer), reason in self.failures.items()
            ],
        }
