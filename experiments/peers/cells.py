"""The load of each cell: the columns of the tables."""

from typing import NamedTuple


class Cell(NamedTuple):
    """The load of one measurement, and its figure."""

    title: str
    concurrency: int  # requests in flight
    requests: int
    prompt: int  # tokens per request
    answer: int  # tokens per request
    adapters: str  # the key of a server's list of adapters, used in turn; "" is the base
    rate: str = "tokens_per_second"  # key of the figure in the client's report

    def figure(self, report):
        """Tokens per second."""
        return report[self.rate]

    def quick(self):
        """The smallest cell that exercises the same path."""
        return self._replace(requests=self.concurrency, answer=4)


CELLS = {
    "decode": Cell("decode", 1, 4, 64, 128, "", "decode_tokens_per_second"),
    "prefill": Cell("prefill", 1, 8, 512, 8, "", "prefill_tokens_per_second"),
    "c16": Cell("16 streams", 16, 32, 64, 64, ""),
    "c16-one": Cell("16, one adapter", 16, 32, 64, 64, "one"),
    "c16-eight": Cell("16, 8 adapters", 16, 32, 64, 64, "eight"),
    "c16-small": Cell("16, 8 tickets of 0.1 %", 16, 32, 64, 64, "eight small"),
    "c16-sixteen": Cell("16, 16 tickets of 1 %", 16, 32, 64, 64, "sixteen"),
}


def rounded(figure):
    """Three significant digits, or all digits before the point."""
    return f"{figure:.0f}" if figure >= 100 else f"{figure:.1f}"
