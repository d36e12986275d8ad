"""What a test of trust promises, and what became of each case; `tests/trust/conftest.py` counts them."""


class Promise:
    """What is promised, the cases tried and those in which it was broken."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.tried = 0
        self.broken: list[str] = []

    def __call__(self, held: bool, case: str) -> None:
        """Counts one case; ``case`` says which it was, for the message where the promise was broken."""
        self.tried += 1
        if not held:
            self.broken.append(case)


class Promises:
    """The promises of one test, by their words."""

    def __init__(self) -> None:
        self.made: dict[str, Promise] = {}

    def __call__(self, what: str) -> Promise:
        """The promise ``what``, made once a test; call it with each case."""
        return self.made.setdefault(what, Promise(what))
