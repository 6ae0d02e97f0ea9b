"""What an icon depicts, read from its name: the rules that make the classes of the icons data set."""

from __future__ import annotations

import re

PREFIX = {
    "bs": r"type-(?=bold|italic|underline|strikethrough)",
    "eva": r"eva-",
    "fluent": r"ic-fluent-(weather-|text-(?=bold|italic|underline|strikethrough|align))?",
    "gmi": r"(sports|local|directions|insert|mode|format)-",
    "ion": r"(ion-)?(android-|ios-|social-)?",
    "lucide": r"icon-",
    "mat": r"(mdi-)?(weather-|format-|language-)?",
    "typicons": r"(typcn-)?(social-|vendor-|media-|device-|weather-)?",
}
STYLE = r"(-\d+)?-(filled|regular|light)|-(outlined?|fill|line|variant|round|border|[abc]|empty|strong)"
VARIANT = {
    "bs": r"(?<=[a-z])[2-9](?=-|$)",
    "eva": r"-[2-9]$",
    "lucide": r"(?<!clock)(?<!dice)(?<!heading)(?<!columns)(?<!rows)-[2-9]$",
    "mat": r"(?<=.)-(bold|thin|thick)(?=-|$)|-variant",
    "remix": r"(?<!number)(?<!h)-[1-9](?=-|$)",
}
SYNONYM = {
    "account": "user",
    "person": "user",
    "home": "house",
    "close": "x",
    "xmark": "x",
    "times": "x",
    "dismiss": "x",
    "add": "plus",
    "done": "check",
    "checkmark": "check",
    "tick": "check",
    "subtract": "minus",
    "email": "mail",
    "envelope": "mail",
    "settings": "gear",
    "cog": "gear",
    "slash": "off",
    "disabled": "off",
    "magnify": "search",
    "information": "info",
    "help": "question",
    "exclamation": "alert",
    "circled": "circle",
    "circular": "circle",
    "microphone": "mic",
    "upward": "up",
    "downward": "down",
    "favorite": "heart",
    "document": "file",
    "drop": "droplet",
    "videocam": "video",
    "telephone": "phone",
    "call": "phone",
    "bin": "trash",
    "earth": "globe",
    "emoticon": "emoji",
    "sunny": "sun",
    "night": "moon",
    "headphone": "headphones",
    "cellphone": "smartphone",
}
FAMILY_SYNONYM = {
    "bs": {"dash": "minus", "earmark": ""},
    "eva": {"remove": "minus"},
    "fa": {"arrow": "arrow"},
    "fluent": {"alert": "bell", "delete": "trash"},
    "gmi": {"remove": "minus", "notifications": "bell", "delete": "trash"},
    "ion": {"remove": "minus", "notifications": "bell"},
    "mat": {"remove": "x", "delete": "trash", "box": "square"},
    "remix": {"delete": "trash"},
}
ORDER = {"up": 1, "down": 1, "left": 1, "right": 1, "circle": 2, "square": 2, "triangle": 2, "off": 3}


def concept(family: str, name: str) -> str:
    name = name.replace("_", "-")
    name = re.sub("^" + PREFIX.get(family, ""), "", name)
    while (shorter := re.sub(f"({STYLE})$", "", name)) != name:
        name = shorter
    name = re.sub(VARIANT.get(family, "(?!)"), "", name)
    own = FAMILY_SYNONYM.get(family, {})
    words = [own.get(word, SYNONYM.get(word, word)) for word in name.split("-")]
    if words == ["square"] and name == "box":
        words = ["box"]
    words = [w for w in words if w]
    if len(words) > 1 and words[0] == "shopping":
        del words[0]
    if len(words) > 1 and words[-1] == "shopping":
        del words[-1]
    return "-".join(sorted(words, key=lambda word: ORDER.get(word, 0)))
