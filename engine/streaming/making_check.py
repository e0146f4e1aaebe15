"""The check before something is made for the cache while a model is loaded."""


class MakingNotPlanned(Exception):
    """Something has to be made for which the plan has no memory: the cache seemed to have it.

    The model has to be planned anew, with memory to make it.
    """


class MakingCheck:
    """Call it before something is made. It raises `MakingNotPlanned` while that is not allowed.

    Args:
        what: what is made.
        is_allowed: whether the plan has memory for it.
    """

    def __init__(self, what: str, *, is_allowed: bool) -> None:
        self._what = what
        self._is_allowed = is_allowed

    def __call__(self) -> None:
        if not self._is_allowed:
            raise MakingNotPlanned(f"the cache has no usable {self._what} any more")

    def allow(self) -> None:
        """Allow it from now on: the model is loaded, and single units may be repaired."""
        self._is_allowed = True
