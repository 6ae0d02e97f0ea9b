"""What an icon depicts, read from its name: the rules that make the classes of the icons data set.

Families name one picture differently, and different pictures alike. The rules were made by looking at contact sheets
of every class, and at pairs of nearly the same picture under two names. Spelling comes first (`REWRITES`, `WORDS`,
`LAST`), then what one family means by a name (`HOMONYMS`), then whole names of one picture (`SAME`), and last the names
for which there is no one picture (`MIXED`). `GLYPHS` mends single glyphs before all of these.
"""

from __future__ import annotations

import re


def by_other_name(groups: dict[str, str]) -> dict[str, str]:
    """Turn `{name: "other names"}` into `{other name: name}`.

    Parameters
    ----------
    groups
        For each name the others that stand for it, separated by spaces.

    Returns
    -------
    dict
        The name to use for each other name.

    Examples
    --------
    >>> by_other_name({"x": "close times", "plus": "add"})
    {'close': 'x', 'times': 'x', 'add': 'plus'}
    """
    return {other: name for name, others in groups.items() for other in others.split()}


def renames(families: dict[str, str]) -> dict[str, dict[str, str]]:
    """Turn `{family: "old=new old=new"}` into `{family: {old: new}}`.

    Parameters
    ----------
    families
        For each family its renamed names, separated by spaces; nothing after the sign means that the name is dropped.

    Returns
    -------
    dict
        One dictionary a family.

    Examples
    --------
    >>> renames({"bs": "list=menu save="})
    {'bs': {'list': 'menu', 'save': ''}}
    """
    return {family: dict(pair.split("=") for pair in text.split()) for family, text in families.items()}


# Single glyphs that are not what their name says, or whose style shows something else (the line style of Remix's
# drop arrow is a chevron; Ionicons draws `android-` and `ios-` pictures of one name differently); none: dropped.
GLYPHS = renames(
    {
        "eva": "eva-globe-2-outline=earth eva-globe-2=earth eva-globe-3=earth",
        "gmi": "filter= format_clear= info_outline=",
        "ion": """
            ion-alert-circled=alert-triangle ion-android-alert=alert-circle ion-android-chat=
            ion-android-download=cloud-download ion-android-funnel=filter-list ion-android-pin=map-pin
            ion-android-upload=cloud-upload ion-android-wifi= ion-archive= ion-ios-settings-strong=sliders
            ion-ios-settings=sliders ion-settings=tools ion-upload=cloud-upload
        """,
        "lucide": "icon-bolt=nut icon-maximize-2= icon-minimize-2= icon-settings-2=sliders icon-share=",
        "mat": """
            mdi-bolt= mdi-border-all-variant= mdi-border-bottom-variant= mdi-border-left-variant=
            mdi-border-none-variant= mdi-border-right-variant= mdi-border-top-variant= mdi-filter-variant=filter-list
            mdi-format-clear= mdi-gamepad-outline= mdi-gamepad= mdi-information-variant=info-mark mdi-share-outline=
            mdi-share= mdi-toggle-switch-variant-off= mdi-toggle-switch-variant=
            mdi-weather-lightning=cloud-flash
        """,
        "remix": """
            arrow-down-s-fill=caret-down arrow-drop-down-line= arrow-drop-left-line= arrow-drop-right-line=
            arrow-drop-up-line= arrow-left-s-fill=caret-left arrow-right-s-fill=play arrow-up-s-fill=caret-up
            attachment-line= bell-fill= bell-line= filter-3-fill=filter-list
            more-2-fill=more-vertical more-2-line=more-vertical
        """,
        "typicons": "typcn-device-phone=smartphone typcn-edit=pencil-square typcn-eject-outline= typcn-eject=",
    }
)

# Prefix, style, size and the number of a variant say nothing of the picture. Some patterns mend a family's own
# vocabulary where it is regular: Eva's `arrow-ios-back` is a chevron. Applied in order.
REWRITES = {
    "bs": [
        (r"-fill$|-lg$", ""),
        (r"(?<=[a-z]{3})[2-9](?=-|$)", ""),
        (r"-short(?=-|$)|-earmark", ""),
        (r"^(type|text)-(?=bold|italic|underline|strikethrough)", ""),
        (r"^align-", "object-align-"),
        (r"^text-(?=(left|right|center)$)", "align-"),
    ],
    "eva": [
        (r"^eva-|-outline$", ""),
        (r"-[2-9]$", ""),
        (r"^arrow-(up|down|left|right)$", r"caret-\1"),
        (r"^arrow-ios-", "chevron-"),
        (r"^arrowhead-", "chevron-double-"),
    ],
    "fa": [
        (r"-(simple|stroke|solid|alt|long|sign)$", ""),
        (r"^angle-", "chevron-"),
        (r"^angles-", "chevron-double-"),
        (r"magnifying-glass", "search"),
    ],
    "fluent": [
        (r"^ic-fluent-|-\d+-(filled|regular|light)$", ""),
        (r"^align-", "object-align-"),
        (r"^(weather|sport)-", ""),
        (r"^text-(?=bold|italic|underline|strikethrough|align|subscript|superscript|wrap)", ""),
    ],
    "gmi": [
        (r"_", "-"),
        (r"^(sports|local|directions|insert|mode|format)-", ""),
        (r"(-(outlined?|filled|border|purple500)|(?<=notifications)-none)+$", ""),
        (r"^keyboard-double-arrow-", "chevron-double-"),
        (r"^keyboard-arrow-", "chevron-"),
        (r"^arrow-(back|forward)-ios$", r"chevron-\1"),
        (r"^arrow-drop-", "caret-"),
    ],
    "ion": [
        (r"^ion-", ""),
        (r"^ios-(plus|minus|close|checkmark|help|information)(-outline)?$", r"\1-circle"),
        (r"^ios-arrow-(?!thin)", "chevron-"),
        (r"^(android|ios|social)-", ""),
        (r"^arrow-(up|down|left|right)-b$", r"caret-\1"),
        (r"^arrow-drop", "caret-"),
        (r"^arrow-thin-", "arrow-"),
        (r"(-(outline|[abc]|empty|strong|round))+$", ""),
    ],
    "lucide": [
        (r"^icon-|-round$|-big(?=-|$)", ""),
        (r"(?<!clock)(?<!dice)(?<!heading)(?<!columns)(?<!rows)(?<!volume)-[2-9]$", ""),
        (r"^chevrons-", "chevron-double-"),
    ],
    "mat": [
        (r"^mdi-|-outline(?=-|$)", ""),
        (r"^(weather|format|language)-", ""),
        (r"(?<=.)-(variant|bold|thin|thick)(?=-|$)", ""),
        (r"^arrow-(up|down|left|right)-(up|down|left|right)$", r"arrow-bent-\1-\2"),
        (r"^arrow-top-(?=left|right)", "arrow-up-"),
        (r"^arrow-bottom-(?=left|right)", "arrow-down-"),
        (r"(?<=.)-box(?=-|$)", "-square"),
        (r"^menu-(?=up|down|left|right)", "caret-"),
        (r"^map-marker", "map-pin"),
    ],
    "remix": [
        (r"-(fill|line)$", ""),
        (r"^notification-[2-4]", "bell"),
        (r"(?<!number)(?<!dice)(?<!^h)-[1-9](?=-|$)|-mini$", ""),
        (r"^arrow-(up|down|left|right)-s$", r"chevron-\1"),
        (r"^arrow-(up|down|left|right)-double$", r"chevron-double-\1"),
        (r"^arrow-drop-", "caret-"),
    ],
    "typicons": [
        (r"^typcn-", ""),
        (r"^(social|vendor|media|device|weather)-|-(outline|thick)$", ""),
        (r"^arrow-sorted-", "caret-"),
    ],
}

# One word for one thing, wherever it stands in a name; a family's own word goes before the common one.
WORDS = by_other_name(
    {
        "alert": "exclamation",
        "brush": "paintbrush",
        "chat": "chatbox chatbubble comment message",
        "check": "checkmark done tick",
        "circle": "circled circular",
        "down": "downward",
        "droplet": "drop",
        "emoji": "emoticon",
        "file": "document",
        "flash": "bolt lightning zap",
        "gear": "cog settings",
        "headphones": "headphone",
        "heart": "favorite",
        "house": "home",
        "image": "photo",
        "info": "information",
        "mail": "email envelope",
        "mic": "microphone",
        "minus": "subtract",
        "moon": "night",
        "off": "disabled slash",
        "paperclip": "attach attachment",
        "pencil": "edit pen",
        "phone": "call telephone",
        "plus": "add",
        "printer": "print",
        "question": "help",
        "search": "magnify",
        "smartphone": "cellphone mobile",
        "sun": "sunny",
        "tag": "pricetag",
        "thumb": "thumbs",
        "timer": "stopwatch",
        "trash": "bin",
        "up": "upward",
        "user": "account person",
        "video": "videocam",
        "x": "close dismiss times xmark",
    }
)
FAMILY_WORDS = {
    "bs": {"dash": "minus", "phone": "smartphone", "subtract": "subtract"},
    "eva": {"remove": "minus"},
    "fa": {"face": "emoji", "person": "person"},
    "fluent": {"alert": "bell", "call": "phone", "delete": "trash", "phone": "smartphone"},
    "gmi": {"call": "call", "delete": "trash", "notifications": "bell", "remove": "minus"},
    "ion": {"notifications": "bell", "remove": "minus"},
    "mat": {"call": "call", "delete": "trash", "remove": "x"},
    "remix": {"delete": "trash", "indeterminate": "minus"},
}

# `circle-arrow-up`, `arrow-circle-up` and `arrow-up-circle` are one: direction, then frame, then "off" go last.
LAST = {"up": 1, "down": 1, "left": 1, "right": 1, "circle": 2, "square": 2, "triangle": 2, "off": 3}

# Names by which one family shows what the others call something else; none: no class should hold the picture.
HOMONYMS = renames(
    {
        "bs": """
            alert=alert-mark book=book-open calendar-month= cast=airplay cursor=navigation filter=filter-list
            info=info-mark list=menu save= server=database skip-forward= snow=snowflake stack=layers suitcase=luggage
            tv=monitor usb= volume-mute=volume-x volume-off=volume-none
        """,
        "eva": """
            car=truck keypad=apps maximize=zoom-in minimize=zoom-out pin=map-pin radio=broadcast undo=reply
            volume-mute=volume-none
        """,
        "fa": """
            alert=alert-mark backward=rewind compress=fullscreen-exit expand=fullscreen forward=fast-forward
            info=info-mark language= map-pin= power-off=power share= tv=monitor volume-off=volume-none
        """,
        "fluent": """
            album= apps= arrow-forward= beaker=flask check= clock= developer-board=cpu filter=filter-list
            games=gamepad navigation=menu radio-button-off= record=circle-dot replay= ribbon=award run= share=
            snow=cloud-snow tv=monitor
        """,
        "gmi": """
            activity= arrow-left=caret-left arrow-right=play camera= cancel=x-circle computer=laptop diamond=gem
            drafts=mail-open equalizer=bar-chart expand= file-download=download file-upload=upload folder-open=folder
            gamepad= grid-3x3=hash group=people headset=headphones hospital= hotel=bed memory=cpu messenger=chat
            note-plus=file-plus
            paint=paint-roller pin= play= power-off=plug-off power=plug question=question-circle school=graduation-cap
            shapes= shop= tag=hash tv=monitor volume-mute=volume-none web= window=
        """,
        "ion": """
            alert=alert-mark bicycle=bike book=book-open box=archive cancel=x-circle delete=trash drafts=mail-open
            flash-off= folder-open=folder football=soccer globe=earth grid-view= grid=apps info=info-mark keypad=apps
            list= more=more-horizontal redo= ribbon=award share= skip-forward= snowy=snowflake undo=reply
        """,
        "lucide": """
            accessibility=wheelchair album= apple= delete=backspace fullscreen= maximize=fullscreen
            minimize=fullscreen-exit nut= radio=broadcast text= volume=volume-none
        """,
        "mat": """
            alert=alert-triangle align-bottom=vertical-align-bottom align-top=vertical-align-top box=
            cancel=prohibited chart-bar=bar-chart contrast= cup= diamond=gem equalizer=bar-chart grid=grid-3x3
            hospital= memory=cpu note-plus=file-plus offer= paint=paint-roller priority-high= school=graduation-cap
            skip-forward= speaker-off= target=crosshair text= thermostat= volume-low=volume-none
            volume-medium=volume-down volume-mute=volume-x water=droplet
        """,
        "remix": """
            alert=alert-triangle align-bottom=vertical-align-bottom align-top=vertical-align-top apps= bike=bicycle
            blender= blur-off=droplet-off computer=monitor disc= eject= equalizer=sliders flashlight=flash
            football=soccer globe= grid= group=people more=more-horizontal movie= numbers= paint=paint-bucket
            question=question-circle refresh= replay= shirt= speed=fast-forward stack=layers suitcase=luggage
            trash-back=backspace video= volume-mute=volume-x
        """,
        "typicons": """
            arrow-back=reply arrow-forward= arrow-move= beaker=flask cancel=prohibited chart-bar=bar-chart database=
            delete=x-circle directions=signpost globe= group=people info= microsoft=windows shower=
        """,
    }
)

# Whole names of one picture, seen side by side; the key is the name of the class.
SAME = {
    "alert-circle": "error error-circle error-warning",
    "alert-mark": "priority-high",
    "alert-triangle": "warning warning-amber report-problem",
    "arrow-down-left": "call-received south-west",
    "arrow-left": "arrow-back",
    "arrow-right": "arrow-forward",
    "arrow-up-right": "call-made north-east",
    "at": "mention alternate-mail",
    "backspace": "delete-left",
    "bank": "landmark user-balance building-bank building-columns",
    "bar-chart": "data-histogram poll",
    "battery-charging": "battery-charge",
    "box": "cube package",
    "broadcast": "radio-tower",
    "bullseye": "target",
    "camera": "camera-alt",
    "caret-left": "play-reverse",
    "chat": "chat-bubble chat-circle chat-square",
    "check-square": "checkbox checkbox-checked checkbox-marked check-box",
    "chevron-down": "expand-more",
    "chevron-left": "chevron-back",
    "chevron-right": "chevron-forward",
    "chevron-up": "expand-less",
    "circle": """
        record small-circle radio-button-off radio-button-unchecked checkbox-blank-circle lens fiber-manual-record
        panorama-fisheye panorama-fish-eye brightness-1
    """,
    "circle-dot": "radio-button-on radio-button-checked record-circle adjust dot-circle radiobox-marked",
    "clapperboard": "movie",
    "clock": "time access-time schedule watch-later query-builder clock-time-four clock-time-three",
    "closed-caption": "closed-captioning badge-cc",
    "cloud": "cloudy cloud-queue",
    "cloud-download": "cloud-arrow-down",
    "cloud-flash": "thunderstorm",
    "cloud-rain": "rainy",
    "cloud-snow": "snowy",
    "cloud-upload": "cloud-arrow-up",
    "code": "code-tags",
    "coffee": "cup cafe mug-hot",
    "compass": "explore",
    "copy": "file-copy content-copy",
    "cpu": "microchip",
    "credit-card": "payment bank-card",
    "crosshair": "crosshairs my-location gps-fixed locate",
    "cursor": "mouse-pointer arrow-pointer cursor-default",
    "disc": "album",
    "door-closed": "door",
    "download": "get-app arrow-download",
    "droplet": "water-droplet",
    "earth": "public globe-americas earth-americas",
    "equal": "equals",
    "external-link": "open-in-new launch open",
    "eye": "visibility",
    "eye-off": "visibility-off",
    "fast-forward": "fastforward",
    "file": "drive-file",
    "file-download": "file-arrow-down",
    "file-upload": "file-arrow-up",
    "filter-list": "list-filter",
    "fire": "flame",
    "flask": "science erlenmeyer-flask",
    "football": "americanfootball american-football",
    "fullscreen": "full-screen-maximize",
    "fullscreen-exit": "full-screen-minimize",
    "funnel": "filter filter-alt filter-list-alt",
    "globe": "language web global",
    "graduation-cap": "hat-graduation mortarboard",
    "grid": "layout-grid view-grid grid-view th-large table-cells-large",
    "hash": "hashtag number-symbol pound numbers",
    "info": "info-circle",
    "lightbulb": "bulb",
    "list": "list-bulleted text-bullet-list list-ul",
    "lock": "lock-closed locked https",
    "lock-open": "unlock unlocked",
    "map-pin": "location geo-alt location-dot location-pin location-on place",
    "megaphone": "bullhorn campaign",
    "menu": "bars",
    "messenger": "facebook-messenger",
    "minus": "horizontal-rule",
    "monitor": "desktop display desktop-windows",
    "moon": "dark-mode",
    "more-horizontal": "ellipsis three-dots dots-horizontal more-horiz",
    "more-vertical": "ellipsis-vertical three-dots-vertical dots-vertical more-vert",
    "move": "arrow-move arrows-up-down-left-right arrows-move arrow-all",
    "music": "music-note music-note-beamed audiotrack musical-note",
    "navigation": "location-arrow near-me",
    "paint-bucket": "color-fill",
    "people": "users user-multiple user-group",
    "phone": "call",
    "pie-chart": "chart-pie",
    "pin": "pushpin push-pin thumbtack pin-angle",
    "plane": "airplane flight",
    "play": "caret-right play-arrow",
    "plug": "power-plug",
    "plug-off": "unplug power-plug-off",
    "plus-square": "plus-box",
    "power": "power-gear-new power-standby",
    "prohibited": "circle-off forbid ban block not-interested do-not-disturb do-disturb",
    "pulse": "activity",
    "question": "question-mark",
    "question-circle": "question-mark-circle",
    "redo": "arrow-redo",
    "refresh": "arrow-clockwise rotate-cw arrow-rotate-right",
    "reply": "arrow-reply",
    "reply-all": "arrow-reply-all",
    "restaurant": "restaurant-menu silverware-fork-knife utensils dining",
    "rewind": "fast-rewind",
    "rotate-ccw": "arrow-counterclockwise arrow-rotate-left replay",
    "rss": "rss-feed",
    "safe": "vault",
    "save": "content-save floppy floppy-disk",
    "scissors": "content-cut cut",
    "send": "paper-plane paper-airplane paperplane send-plane",
    "server": "dns",
    "share": "share-nodes share-alt share-android",
    "shield-check": "verified-user shield-task",
    "ship": "ferry boat",
    "shirt": "t-shirt tshirt-crew",
    "sim-card": "sim",
    "skip-next": "skip-forward forward-step skip-end next",
    "skip-previous": "skip-back backward-step skip-start previous",
    "sliders": "options tune sliders-horizontal",
    "soccer": "futbol",
    "speedometer": "gauge speed",
    "square": "stop checkbox-blank checkbox-outline-blank crop-square",
    "star-half": "star-half-full",
    "store": "shop store-mall-directory",
    "sun": "wb-sun light-mode",
    "sync": "arrow-sync arrow-repeat refresh-cw arrows-rotate autorenew loop",
    "tag": "offer sell",
    "text": "type title text-t",
    "text-wrap": "wrap-text wrap",
    "thermometer": "temperature thermostat",
    "toggle-off": "toggle-left toggle-switch-off",
    "toggle-on": "toggle-right toggle-switch",
    "traffic-light": "traffic stoplights",
    "train": "subway railway transit",
    "trophy": "emoji-events",
    "truck": "shipping",
    "undo": "arrow-undo",
    "video": "vidicon camera-video",
    "video-off": "camera-video-off",
    "virus": "coronavirus",
    "volume-down": "volume-1 volume-low speaker-1",
    "volume-none": "speaker-0",
    "volume-off": "speaker-off",
    "volume-up": "volume-high volume-2 speaker-2",
    "walk": "user-walking person-walking",
    "wallet": "user-balance-wallet",
    "waves": "water",
    "wind": "windy air",
    "x": "clear",
    "x-circle": "highlight-off",
    "zoom-in": "search-plus",
    "zoom-out": "search-minus",
}

# Names that families draw each in its own way, so that no image of the class would find another.
MIXED = """
    badge bookmarks brightness-high brightness-low calendar-day calendar-today certificate contacts dock drag expand
    forward git hail half-circle library line maximize medium network note npm off phone-missed prescription
    rotate-left rotate-right satellite scale scan screenshot signal skip-backward sort tab timeline timer-10 timer-3
"""
OTHER_NAMES = by_other_name(SAME | {"": MIXED})


def spelled(family: str, glyph: str) -> str:
    """Write the name of a glyph as all families would: no prefix, style or size, common words in a common order.

    Parameters
    ----------
    family
        One of `REWRITES`.
    glyph
        Its name in the family's glyph map.

    Returns
    -------
    str
        The name, still with what the family means by it.

    Examples
    --------
    >>> spelled("lucide", "icon-circle-arrow-up"), spelled("gmi", "arrow_circle_up")
    ('arrow-up-circle', 'arrow-up-circle')
    """
    for pattern, replacement in REWRITES[family]:
        glyph = re.sub(pattern, replacement, glyph)
    own = FAMILY_WORDS.get(family, {})
    words = [own.get(word) or WORDS.get(word, word) for word in glyph.split("-")]
    name = "-".join(sorted(words, key=lambda word: LAST.get(word, 0)))
    return re.sub(r"^shopping-(?=(cart|bag|basket)\b)|-shopping$", "", name)


def concept(family: str, glyph: str) -> str | None:
    """Return what a glyph depicts: the class of its image, were there enough families that have it.

    Parameters
    ----------
    family
        One of `REWRITES`.
    glyph
        Its name in the family's glyph map.

    Returns
    -------
    str or None
        A name such as ``arrow-up-circle``; none where the name says nothing certain of the picture.

    Examples
    --------
    >>> concept("fluent", "ic-fluent-settings-24-filled"), concept("mat", "mdi-cog-outline")
    ('gear', 'gear')
    >>> concept("lucide", "icon-apple")  # the fruit; in the other families the maker of computers
    """
    mended = GLYPHS.get(family, {}).get(glyph)
    if mended is not None:
        return mended or None
    name = spelled(family, glyph)
    name = HOMONYMS[family].get(name, name)
    return OTHER_NAMES.get(name, name) or None
