"""Phrases of the home-command grammar, by tier: how a command is worded, placed and framed.

`{np}` is the device with its place ("the attic fan"), `{n}`, `{color}`, `{music}` are the value. A phrase that begins
with `!` is a whole sentence and takes no frame. `gold` phrases also serve `prompts`; `heldout` and `valid` phrases and
frames stand nowhere else, and every one of their utterances has at least one of them.
"""

from __future__ import annotations

FRAMES = {
    "gold": (
        "{c}", "{c}", "please {c}", "{c} please", "can you {c}", "could you {c}", "i want you to {c}", "hey {c}",
        "would you {c}", "i need you to {c}", "{c} now", "could you please {c}", "{c} thanks", "ok {c}", "just {c}",
        "your next job is to {c}", "first of all {c}", "listen {c}", "one more thing {c}", "{c} today", "tonight {c}",
        "may i ask you to {c}", "{c} this instant", "and then {c}", "it is late so {c}", "{c} when you can",
        "do me a favor and {c}", "i'd like you to {c}",
    ),
    "prompts": (
        "will you {c}", "now {c}", "can you please {c}", "so {c}", "{c} right away", "{c} thank you", "quickly {c}",
        "be so kind and {c}", "computer {c}", "assistant {c}", "um {c}", "{c} if you can", "good morning {c}",
        "we have guests so {c}", "before i leave {c}", "i'm home {c}", "it would be nice if you could {c}",
        "could you maybe {c}", "good evening {c}", "{c} right now please", "would it be possible to {c}",
        "please just {c}", "i would love it if you could {c}", "{c} before i leave", "you should {c}", "try to {c}",
        "please go and {c}",
    ),
    "valid": ("kindly {c}", "i would like you to {c}", "hi {c}", "{c} at once", "are you able to {c}"),
    "heldout": (
        "{c} for me", "go ahead and {c}", "would you please {c}", "hello {c}", "{c} as soon as possible", "alright {c}",
        "i'd appreciate it if you could {c}", "make sure to {c}", "it's time to {c}", "i'd be glad if you would {c}",
        "{c} will you", "help me out and {c}", "is it possible for you to {c}", "{c} before we go to bed",
    ),
}  # fmt: skip

# (before the whole, the noun phrase, after the command); those without {room} say no room: "any".
PLACES = {
    "gold": (
        ("", "the {room} {dev}", ""), ("", "the {dev} in the {room}", ""), ("", "the {dev} in the {room}", ""),
        ("in the {room} ", "the {dev}", ""), ("", "my {room} {dev}", ""), ("", "the {dev} inside the {room}", ""),
        ("", "the {dev}", " in the {room}"),
    ),
    "prompts": (
        ("", "our {room} {dev}", ""), ("over in the {room} ", "the {dev}", ""),
        ("", "the {dev} we have in the {room}", ""), ("", "the {dev} from the {room}", ""),
        ("", "the {dev} here in the {room}", ""),
    ),
    "valid": (("", "the {dev} in our {room}", ""), ("", "the {dev} of the {room}", "")),
    "heldout": (
        ("", "the {dev} in my {room}", ""), ("", "the {dev} over in the {room}", ""),
        ("for the {room} ", "the {dev}", ""), ("", "the {dev} back in the {room}", ""),
    ),
}  # fmt: skip
NO_ROOM = {
    "gold": ("the {dev}", "my {dev}"),
    "prompts": ("our {dev}",),
    "valid": (),
    "heldout": (),
}  # fmt: skip

PHRASES = {
    "on": {
        "gold": (
            "bring {np} on", "fire up {np}", "make {np} go on", "!{np} must be on",
            "turn on {np}", "turn {np} on", "switch on {np}", "switch {np} on", "power on {np}", "activate {np}",
            "enable {np}", "put {np} on", "!i want {np} on", "!{np} on please",
        ),
        "prompts": (
            "power {np} on", "get {np} switched on", "!i need {np} on", "!{np} on", "turn {np} back on", "put on {np}",
            "turn {np} on again", "!let me have {np} on now",
        ),
        "valid": ("get {np} turned on", "flick {np} on", "!let us have {np} on"),
        "heldout": (
            "flip on {np}", "power up {np}", "switch {np} back on", "!i would like {np} on", "!have {np} on",
        ),
    },
    "off": {
        "gold": (
            "make {np} go off", "knock {np} off", "!{np} must be off",
            "turn off {np}", "turn {np} off", "switch off {np}", "switch {np} off", "power off {np}", "deactivate {np}",
            "disable {np}", "shut {np} off", "!i want {np} off", "!{np} off please",
        ),
        "prompts": (
            "power {np} off", "get {np} switched off", "!i need {np} off", "!{np} off", "turn {np} off again",
            "cut {np} off", "!let me have {np} off now",
        ),
        "valid": ("get {np} turned off", "flick {np} off", "!let us have {np} off"),
        "heldout": (
            "shut off {np}", "power down {np}", "switch {np} off again", "!i would like {np} off", "!have {np} off",
        ),
    },
    "arm": {
        "gold": ("arm {np}",),
        "prompts": (),
        "valid": (),
        "heldout": (),
    },
    "disarm": {
        "gold": ("disarm {np}",),
        "prompts": (),
        "valid": (),
        "heldout": (),
    },
    "percent": {
        "gold": (
            "let {np} go to {n} percent", "!{n} percent for {np}", "!{np} must be at {n} percent",
            "set {np} to {n} percent", "put {np} at {n} percent", "change {np} to {n} percent",
            "turn {np} to {n} percent", "bring {np} to {n} percent", "!{np} to {n} percent",
            "!i want {np} at {n} percent",
        ),
        "prompts": (
            "adjust {np} to {n} percent", "set {np} at {n} percent", "move {np} to {n} percent", "set {np} to {n}",
            "!i need {np} at {n} percent", "get {np} up to {n} percent", "run {np} at {n} percent",
            "keep {np} at {n} percent",
        ),
        "valid": ("switch {np} to {n} percent", "get {np} to {n} percent"),
        "heldout": (
            "put {np} on {n} percent", "have {np} set to {n} percent", "!{np} should be at {n} percent",
        ),
    },
    "brightness": {
        "gold": (
            "make the brightness of {np} {n} percent",
            "set the brightness of {np} to {n} percent", "put {np} at {n} percent brightness",
            "bring the brightness of {np} to {n} percent",
        ),
        "prompts": ("set the brightness of {np} to {n}", "put the brightness of {np} on {n} percent"),
        "valid": ("put the brightness of {np} at {n} percent",),
        "heldout": (
            "change the brightness of {np} to {n} percent", "adjust the brightness of {np} to {n} percent",
        ),
    },
    "color": {
        "gold": (
            "give {np} a {color} color", "let {np} shine {color}", "!{color} for {np}",
            "make {np} {color}", "set {np} to {color}", "turn {np} {color}", "change {np} to {color}",
            "set the color of {np} to {color}", "!i want {np} {color}", "color {np} {color}",
        ),
        "prompts": (
            "switch {np} to {color}", "make the color of {np} {color}", "turn {np} to {color}", "!i need {np} {color}",
            "put {np} in {color}",
        ),
        "valid": ("make {np} all {color}", "let {np} be {color}"),
        "heldout": (
            "change the color of {np} to {color}", "turn the color of {np} to {color}", "!i would like {np} {color}",
        ),
    },
    "degrees": {
        "gold": (
            "let {np} go to {n} degrees", "!{n} degrees for {np}", "!{np} must be at {n} degrees",
            "set {np} to {n} degrees", "put {np} at {n} degrees", "change {np} to {n} degrees",
            "turn {np} to {n} degrees", "set the temperature of {np} to {n} degrees", "heat {np} to {n} degrees",
            "!i want {np} at {n} degrees",
        ),
        "prompts": (
            "bring {np} to {n} degrees", "adjust {np} to {n} degrees", "set {np} at {n} degrees", "set {np} to {n}",
            "!{np} to {n} degrees", "run {np} at {n} degrees", "keep {np} at {n} degrees",
            "warm {np} up to {n} degrees",
        ),
        "valid": ("switch {np} to {n} degrees", "get {np} to {n} degrees"),
        "heldout": (
            "put {np} on {n} degrees", "have {np} set to {n} degrees", "!{np} should be at {n} degrees",
            "change the temperature of {np} to {n} degrees",
        ),
    },
    "open": {
        "gold": (
            "throw {np} open", "make {np} go up", "!{np} must be open",
            "open {np}", "raise {np}", "open up {np}", "pull up {np}", "lift {np}", "!i want {np} open", "pull {np} up",
            "roll {np} up",
        ),
        "prompts": ("get {np} open", "open {np} fully", "bring {np} up", "!i need {np} open", "move {np} up"),
        "valid": ("slide {np} open", "draw {np} open"),
        "heldout": ("roll up {np}", "lift up {np}", "open {np} all the way", "!i would like {np} open"),
    },
    "close": {
        "gold": (
            "make {np} go down", "!{np} must be closed",
            "close {np}", "lower {np}", "shut {np}", "pull down {np}", "drop {np}", "!i want {np} closed",
            "pull {np} down", "roll {np} down",
        ),
        "prompts": (
            "get {np} closed", "close {np} fully", "bring {np} down", "!i need {np} closed", "move {np} down",
        ),
        "valid": ("slide {np} shut", "draw {np} shut"),
        "heldout": ("roll down {np}", "close {np} all the way", "!i would like {np} closed", "bring down {np}"),
    },
    "lock": {
        "gold": (
            "put the lock on {np}", "lock {np} for the night", "!{np} must be locked",
            "lock {np}", "lock up {np}", "make sure {np} is locked", "secure {np}", "!i want {np} locked",
            "get {np} locked",
        ),
        "prompts": (
            "bolt {np}", "lock {np} up", "keep {np} locked", "!i need {np} locked", "lock down {np}",
            "check that {np} is locked",
        ),
        "valid": ("leave {np} locked",),
        "heldout": (
            "have {np} locked", "see that {np} is locked", "!{np} should be locked", "!i would like {np} locked",
        ),
    },
    "unlock": {
        "gold": (
            "take the lock off {np}", "let {np} be unlocked", "!{np} must be unlocked",
            "unlock {np}", "make sure {np} is unlocked", "undo the lock on {np}", "!i want {np} unlocked",
            "get {np} unlocked",
        ),
        "prompts": (
            "unbolt {np}", "release the lock on {np}", "keep {np} unlocked", "!i need {np} unlocked",
            "check that {np} is unlocked",
        ),
        "valid": ("leave {np} unlocked",),
        "heldout": (
            "have {np} unlocked", "see that {np} is unlocked", "!{np} should be unlocked",
            "!i would like {np} unlocked",
        ),
    },
    "volume": {
        "gold": (
            "make the volume of {np} {n}", "give {np} a volume of {n}", "!{np} must be at volume {n}",
            "set the volume of {np} to {n}", "turn the volume of {np} to {n}", "put {np} at volume {n}",
            "set {np} to volume {n}", "change the volume of {np} to {n}", "!i want {np} at volume {n}",
        ),
        "prompts": (
            "bring the volume of {np} to {n}", "set the volume on {np} to {n}", "turn {np} to volume {n}",
            "!volume {n} on {np}", "turn up the volume of {np} to {n}", "turn down the volume of {np} to {n}",
            "!i need {np} at volume {n}",
        ),
        "valid": ("put the volume of {np} at {n}",),
        "heldout": (
            "adjust the volume of {np} to {n}", "have {np} at volume {n}", "move the volume of {np} to {n}",
            "!the volume of {np} should be {n}",
        ),
    },
    "channel": {
        "gold": (
            "let me see channel {n} on {np}", "turn {np} over to channel {n}", "!channel {n} for {np}",
            "switch {np} to channel {n}", "put {np} on channel {n}", "change {np} to channel {n}",
            "set {np} to channel {n}", "put channel {n} on {np}", "!i want channel {n} on {np}",
        ),
        "prompts": (
            "turn {np} to channel {n}", "tune {np} to channel {n}", "go to channel {n} on {np}", "!channel {n} on {np}",
            "watch channel {n} on {np}", "!i need channel {n} on {np}",
        ),
        "valid": ("flip {np} to channel {n}",),
        "heldout": (
            "show channel {n} on {np}", "move {np} to channel {n}", "have {np} on channel {n}",
            "!i would like channel {n} on {np}",
        ),
    },
    "play": {
        "gold": (
            "let me hear {music} on {np}", "run {music} on {np}", "!{music} for {np}",
            "play {music} on {np}", "play some {music} on {np}", "put {music} on {np}", "play {music} music on {np}",
            "start {music} on {np}", "!i want {music} on {np}", "let {np} play {music}",
        ),
        "prompts": (
            "start playing {music} on {np}", "play {music} from {np}", "make {np} play {music}",
            "!i need {music} on {np}", "put on {music} on {np}", "play us {music} on {np}",
        ),
        "valid": ("play a little {music} on {np}", "play {music} over {np}"),
        "heldout": (
            "have {np} play {music}", "play a bit of {music} on {np}", "play {music} through {np}",
            "!i would like {music} on {np}",
        ),
    },
}  # fmt: skip
