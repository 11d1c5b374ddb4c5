"""A number of things in words, the one way for all that a person reads. No torch here."""

from __future__ import annotations

_HISSING = ("s", "x", "sh", "tch")  # a batch, but not an epoch


def number_of(count: float, thing: str) -> str:
    """ "1 image", "2 passes", "1,400 training images", "0.5 minutes".

    Args:
        thing: one of them; its last word is what is put into the plural.
    """
    more = "" if count == 1 else "es" if thing.endswith(_HISSING) else "s"
    digits = f"{int(count):,}" if float(count).is_integer() else f"{count:,.6g}"  # whole ones of NumPy too
    return f"{digits} {thing}{more}"
