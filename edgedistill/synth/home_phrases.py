"""Phrases of the home-command grammar: how a command is worded, placed and framed.

`{np}` is the device with its place ("the attic fan"), `{n}` and `{color}` are the value. A phrase that begins
with `!` is a whole sentence and takes no frame. Every table but the plain ones is dealt to the splits by `home_deal`.
"""

from __future__ import annotations

PLAIN_FRAMES = ("{c}", "please {c}", "{c} please")
FRAMES = (
    "can you {c}", "could you {c}", "would you {c}", "will you {c}", "can you please {c}", "could you please {c}",
    "would you please {c}", "i want you to {c}", "i need you to {c}", "i would like you to {c}", "i'd like you to {c}",
    "hey {c}", "hello {c}", "ok {c}", "okay {c}", "alright {c}", "now {c}", "just {c}", "please just {c}", "{c} now",
    "{c} right now", "{c} thanks", "{c} thank you", "{c} for me", "{c} right away", "{c} at once", "{c} immediately",
    "{c} quickly", "go ahead and {c}", "please go and {c}", "{c} if you can", "{c} when you can", "{c} again",
    "hey can you {c}", "hey could you {c}", "hey please {c}", "let's {c}", "make sure to {c}", "be sure to {c}",
    "don't forget to {c}", "please remember to {c}", "it's time to {c}", "time to {c}", "can you just {c}",
    "i need to {c}", "i want to {c}", "we need to {c}", "you should {c}", "{c} as soon as possible", "{c} once more",
    "{c} when you have time", "{c} for now", "{c} for us", "okay please {c}", "ok please {c}", "now please {c}",
    "{c} now please", "{c} right now please", "{c} for me please", "can you {c} for me", "could you {c} now",
    "can you {c} please", "could you {c} please", "i need you to please {c}", "hey would you {c}", "please {c} now",
    "please {c} right away", "just {c} now", "{c} again please",
)  # fmt: skip

# (the noun phrase, what follows the command); those without {room} say no room: "any".
PLAIN_PLACES = (
    ("the {room} {dev}", ""), ("the {dev} in the {room}", ""), ("the {dev}", " in the {room}"),
)  # fmt: skip
PLACES = (
    ("my {room} {dev}", ""), ("the {dev} inside the {room}", ""),
    ("our {room} {dev}", ""), ("the {dev} from the {room}", ""), ("the {dev} here in the {room}", ""),
    ("the {dev} that is in the {room}", ""), ("your {room} {dev}", ""), ("the {dev}", " inside the {room}"),
    ("the {dev}", " here in the {room}"), ("the {dev} in our {room}", ""), ("the {dev} of the {room}", ""),
    ("the {dev} in my {room}", ""), ("the {dev} over in the {room}", ""), ("the {dev} for the {room}", ""),
    ("the {dev} we have in the {room}", ""), ("this {dev} in the {room}", ""),
    ("the {dev} there in the {room}", ""), ("the {dev}", " over in the {room}"),
    ("the {dev} in your {room}", ""), ("the {dev}", " in my {room}"), ("the {dev}", " in our {room}"),
    ("the {dev}", " there in the {room}"),
)  # fmt: skip
LINKS = (" to ", " at ", " should ", " needs ", " is ")  # what can follow a place without seeming to belong to it
NO_ROOM = ("the {dev}", "my {dev}", "our {dev}")

PHRASES: dict[str, tuple[str, ...]] = {
    "on": (
        "turn on {np}", "turn {np} on", "switch on {np}", "switch {np} on", "power on {np}", "power {np} on",
        "put {np} on", "flip on {np}", "flip {np} on", "turn {np} back on", "switch {np} back on", "!i want {np} on",
        "!i need {np} on", "!{np} on", "!i would like {np} on", "!{np} should be on", "!we want {np} on",
        "!make sure {np} is on", "!{np} needs to be on",
    ),
    "off": (
        "turn off {np}", "turn {np} off", "switch off {np}", "switch {np} off", "power off {np}", "power {np} off",
        "shut off {np}", "shut {np} off", "flip off {np}", "flip {np} off", "turn {np} back off",
        "switch {np} back off", "!i want {np} off", "!i need {np} off", "!{np} off", "!i would like {np} off",
        "!{np} should be off", "!we want {np} off", "!make sure {np} is off", "!{np} needs to be off",
    ),
    "percent": (
        "set {np} to {n} percent", "put {np} at {n} percent", "change {np} to {n} percent", "turn {np} to {n} percent",
        "adjust {np} to {n} percent", "bring {np} to {n} percent", "move {np} to {n} percent",
        "set {np} at {n} percent", "keep {np} at {n} percent", "get {np} to {n} percent", "raise {np} to {n} percent",
        "lower {np} to {n} percent", "make {np} {n} percent", "leave {np} at {n} percent",
        "!i want {np} at {n} percent", "!i need {np} at {n} percent", "!{np} at {n} percent",
        "!i would like {np} at {n} percent", "!{np} should be at {n} percent", "!we want {np} at {n} percent",
        "!{np} needs to be at {n} percent",
    ),
    "brightness": (
        "set the brightness of {np} to {n} percent", "put the brightness of {np} at {n} percent",
        "change the brightness of {np} to {n} percent", "adjust the brightness of {np} to {n} percent",
        "raise the brightness of {np} to {n} percent", "lower the brightness of {np} to {n} percent",
        "bring the brightness of {np} to {n} percent", "turn the brightness of {np} to {n} percent",
        "keep the brightness of {np} at {n} percent", "move the brightness of {np} to {n} percent",
        "put {np} at {n} percent brightness", "set {np} to {n} percent brightness",
        "give {np} a brightness of {n} percent",
    ),
    "color": (
        "make {np} {color}", "turn {np} {color}", "set {np} to {color}", "change {np} to {color}",
        "switch {np} to {color}", "turn {np} to {color}", "set the color of {np} to {color}",
        "change the color of {np} to {color}", "make the color of {np} {color}", "switch the color of {np} to {color}",
        "turn the color of {np} to {color}", "!i want {np} {color}", "!i need {np} {color}",
        "!i would like {np} {color}", "!{np} should be {color}", "!we want {np} {color}", "!{np} needs to be {color}",
    ),
    "degrees": (
        "set {np} to {n} degrees", "put {np} at {n} degrees", "change {np} to {n} degrees", "turn {np} to {n} degrees",
        "adjust {np} to {n} degrees", "bring {np} to {n} degrees", "move {np} to {n} degrees",
        "set {np} at {n} degrees", "keep {np} at {n} degrees", "get {np} to {n} degrees", "raise {np} to {n} degrees",
        "lower {np} to {n} degrees", "make {np} {n} degrees", "leave {np} at {n} degrees",
        "!i want {np} at {n} degrees", "!i need {np} at {n} degrees", "!{np} at {n} degrees",
        "!i would like {np} at {n} degrees", "!{np} should be at {n} degrees", "!we want {np} at {n} degrees",
        "!{np} needs to be at {n} degrees", "set the temperature of {np} to {n} degrees",
        "put the temperature of {np} at {n} degrees", "change the temperature of {np} to {n} degrees",
        "adjust the temperature of {np} to {n} degrees", "raise the temperature of {np} to {n} degrees",
        "lower the temperature of {np} to {n} degrees", "keep the temperature of {np} at {n} degrees",
        "heat {np} to {n} degrees", "warm {np} to {n} degrees",
    ),
    "open": (
        "open {np}", "open up {np}", "pull {np} open", "pull open {np}", "slide {np} open", "get {np} open",
        "keep {np} open", "leave {np} open", "!i want {np} open", "!i need {np} open", "!i would like {np} open",
        "!{np} should be open", "!we want {np} open", "!make sure {np} is open", "!{np} needs to be open",
    ),
    "close": (
        "close {np}", "close up {np}", "shut {np}", "pull {np} shut", "get {np} closed", "keep {np} closed",
        "leave {np} closed", "keep {np} shut", "!i want {np} closed", "!i need {np} closed",
        "!i would like {np} closed", "!{np} should be closed", "!we want {np} closed", "!make sure {np} is closed",
        "!{np} needs to be closed",
    ),
    "lock": (
        "lock {np}", "lock up {np}", "make sure {np} is locked", "be sure {np} is locked", "get {np} locked",
        "keep {np} locked", "!i want {np} locked", "!i need {np} locked", "!i would like {np} locked",
        "!{np} should be locked", "!we want {np} locked", "!{np} needs to be locked", "!make sure {np} stays locked",
    ),
    "unlock": (
        "unlock {np}", "make sure {np} is unlocked", "be sure {np} is unlocked", "get {np} unlocked",
        "keep {np} unlocked", "!i want {np} unlocked", "!i need {np} unlocked", "!i would like {np} unlocked",
        "!{np} should be unlocked", "!we want {np} unlocked", "!{np} needs to be unlocked",
    ),
    "volume": (
        "set the volume of {np} to {n}", "put the volume of {np} at {n}", "change the volume of {np} to {n}",
        "adjust the volume of {np} to {n}", "raise the volume of {np} to {n}", "lower the volume of {np} to {n}",
        "turn the volume of {np} to {n}", "keep the volume of {np} at {n}", "turn up the volume of {np} to {n}",
        "turn down the volume of {np} to {n}", "put {np} at volume {n}", "set {np} to volume {n}",
        "turn {np} to volume {n}", "set the volume on {np} to {n}", "change {np} to volume {n}",
        "keep {np} at volume {n}", "!i want {np} at volume {n}", "!i need {np} at volume {n}",
        "!i would like {np} at volume {n}", "!{np} at volume {n}", "!{np} should be at volume {n}",
        "!we want {np} at volume {n}", "!{np} needs to be at volume {n}",
    ),
    "channel": (
        "switch {np} to channel {n}", "put {np} on channel {n}", "change {np} to channel {n}",
        "set {np} to channel {n}", "turn {np} to channel {n}", "tune {np} to channel {n}", "put channel {n} on {np}",
        "go to channel {n} on {np}", "watch channel {n} on {np}", "show channel {n} on {np}",
        "play channel {n} on {np}", "keep {np} on channel {n}", "!i want channel {n} on {np}",
        "!i need channel {n} on {np}", "!i would like channel {n} on {np}", "!{np} on channel {n}",
        "!{np} should be on channel {n}", "!we want channel {n} on {np}", "!{np} needs to be on channel {n}",
    ),
}  # fmt: skip
