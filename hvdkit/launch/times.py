"""Spans of time as people write and read them."""


def seconds(value: float) -> str:
    """`1.5 s`, `83 s`, `12 min 5 s`, `2 h 5 min`."""
    if value < 9.95:
        return f"{value:.1f}".removesuffix(".0") + " s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 10:
        return f"{round(value)} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def parse_seconds(text: str) -> float:
    """`90`, `90s`, `5m`, `1h`, `2d` in seconds. Raises ValueError."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    unit = units.get(text[-1:], 0)
    value = float(text[:-1] if unit else text) * (unit or 1)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{text!r} is no span of time")
    return value
