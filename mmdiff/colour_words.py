"""Words for colours, by hue and shade."""

HUES = (  # hue in degrees up to which the word applies, beginning at -60 (300)
    (-20.0, "pink"),
    (10.0, "red"),
    (36.0, "orange"),
    (62.0, "yellow"),
    (80.0, "yellow-green"),
    (160.0, "green"),
    (260.0, "blue"),
    (300.0, "purple"),
)
SHADES = ("dark", "pale")
WORDS = frozenset({word for _, word in HUES} | {"black", "white", "grey", "brown"})
