"""How long a thing took, as all tables, pages and lines of the package say it."""


def duration(seconds: float) -> str:
    """Seconds as "42 s", "9:31" or "1:09:31".

    >>> duration(42.4), duration(75), duration(3675)
    ('42 s', '1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"
