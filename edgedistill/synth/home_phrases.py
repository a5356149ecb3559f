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
        "do me a favor and {c}", "i'd like you to {c}", "i'm home {c}", "the kids are asleep so {c}", "as always {c}",
        "{c} after lunch", "good morning {c}", "{c} without waiting", "{c} if you have time", "be nice and {c}",
        "my dear {c}", "i hope you can {c}", "{c} once again",
    ),
    "prompts": (
        "will you {c}", "now {c}", "can you please {c}", "so {c}", "{c} right away", "{c} thank you", "quickly {c}",
        "be so kind and {c}", "computer {c}", "assistant {c}", "um {c}", "{c} if you can", "we have guests so {c}",
        "before i leave {c}", "it would be nice if you could {c}", "could you maybe {c}", "good evening {c}",
        "{c} right now please", "would it be possible to {c}", "please just {c}", "i would love it if you could {c}",
        "{c} before i leave", "you should {c}", "try to {c}", "please go and {c}", "before dinner {c}",
        "i am asking you to {c}", "let me ask you to {c}", "{c} soon", "{c} quickly", "{c} okay", "{c} once more",
        "it would help to {c}", "it would be great to {c}", "you have to {c}", "feel free to {c}", "go and {c}",
        "be sure to {c}", "don't forget to {c}", "help me {c}", "i think you should {c}", "why don't you {c}",
        "how about you {c}", "we need to {c}", "it is cold so {c}", "{c} before you go", "{c} until i am back",
        "{c} before it gets dark", "{c} for the evening", "you are able to {c}", "{c} without a word",
        "{c} if that is okay", "sweetheart {c}", "i was going to ask you to {c}", "{c} when you are done",
        "we wish you would {c}", "{c} without any noise", "let us {c}", "{c} if nobody minds",
    ),
    "valid": (
        "kindly {c}", "i would like you to {c}", "hi {c}", "{c} at once", "are you able to {c}", "{c} for me",
        "go ahead and {c}", "would you please {c}", "hello {c}", "{c} as soon as possible", "alright {c}",
        "i'd appreciate it if you could {c}", "make sure to {c}", "it's time to {c}", "i'd be glad if you would {c}",
        "{c} will you", "help me out and {c}", "is it possible for you to {c}", "{c} before we go to bed",
        "{c} straight away", "be a dear and {c}", "i was hoping you could {c}", "excuse me {c}", "{c} without delay",
        "okay now {c}", "you may {c}", "let's {c}", "please remember to {c}", "{c} whenever you are ready",
        "we would like you to {c}", "can you quickly {c}", "{c} if it is not too much trouble",
        "would you mind if i asked you to {c}",
    ),
    "heldout": (
        "{c} in a moment", "if you please {c}", "someone should {c}", "i have to ask you to {c}", "look {c}",
        "{c} while i cook", "it is high time to {c}", "do {c}", "we ask you to {c}", "{c} as i said", "right {c}",
        "oh and {c}", "{c} my friend", "all i want is that you {c}",
    ),
}  # fmt: skip

# (before the whole, the noun phrase, after the command); those without {room} say no room: "any".
PLACES = {
    "gold": (
        ("", "the {room} {dev}", ""), ("", "the {dev} in the {room}", ""), ("", "the {dev} in the {room}", ""),
        ("in the {room} ", "the {dev}", ""), ("", "my {room} {dev}", ""), ("", "the {dev} inside the {room}", ""),
        ("", "the {dev}", " in the {room}"), ("here in the {room} ", "the {dev}", ""),
    ),
    "prompts": (
        ("", "our {room} {dev}", ""), ("over in the {room} ", "the {dev}", ""),
        ("", "the {dev} we have in the {room}", ""), ("", "the {dev} from the {room}", ""),
        ("", "the {dev} here in the {room}", ""), ("", "the {dev} that is in the {room}", ""),
        ("", "your {room} {dev}", ""), ("up in the {room} ", "the {dev}", ""), ("", "the {dev}", " inside the {room}"),
        ("", "the {dev}", " here in the {room}"),
    ),
    "valid": (
        ("", "the {dev} in our {room}", ""), ("", "the {dev} of the {room}", ""), ("", "the {dev} in my {room}", ""),
        ("", "the {dev} over in the {room}", ""), ("for the {room} ", "the {dev}", ""),
        ("", "the {dev} back in the {room}", ""), ("", "the {dev} for the {room}", ""),
        ("", "the {dev} down in the {room}", ""), ("", "the {dev} within the {room}", ""),
        ("out in the {room} ", "the {dev}", ""),
    ),
    "heldout": (
        ("", "the {dev} which stands in the {room}", ""), ("", "the {dev} near us in the {room}", ""),
        ("", "the old {dev} in the {room}", ""), ("as for the {room} ", "the {dev}", ""),
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
            "bring {np} on", "fire up {np}", "make {np} go on", "!{np} must be on", "turn on {np}", "turn {np} on",
            "switch on {np}", "switch {np} on", "power on {np}", "activate {np}", "enable {np}", "put {np} on",
            "!i want {np} on", "!{np} on please", "start {np}", "get {np} running", "click {np} on",
            "put {np} on again",
        ),
        "prompts": (
            "power {np} on", "get {np} switched on", "!i need {np} on", "!{np} on", "turn {np} back on", "put on {np}",
            "turn {np} on again", "!let me have {np} on now", "start up {np}", "get {np} going", "click on {np}",
            "snap {np} on", "keep {np} on", "leave {np} on", "!make sure {np} is on", "!{np} needs to be on",
            "!i would love {np} on", "run {np}", "turn {np} all the way on", "tap {np} on", "get {np} to go on",
        ),
        "valid": (
            "get {np} turned on", "flick {np} on", "!let us have {np} on", "flip on {np}", "power up {np}",
            "switch {np} back on", "!i would like {np} on", "!have {np} on", "flick on {np}", "get {np} to come on",
            "switch {np} on again", "!{np} should be on", "!i would prefer {np} on",
        ),
        "heldout": (
            "get {np} up and running", "set {np} running", "flip {np} on", "!let {np} be on", "!we want {np} on",
        ),
    },
    "off": {
        "gold": (
            "make {np} go off", "knock {np} off", "!{np} must be off", "turn off {np}", "turn {np} off",
            "switch off {np}", "switch {np} off", "power off {np}", "deactivate {np}", "disable {np}", "shut {np} off",
            "!i want {np} off", "!{np} off please", "kill {np}", "cut the power to {np}", "stop {np}", "shut {np} down",
            "put {np} off",
        ),
        "prompts": (
            "power {np} off", "get {np} switched off", "!i need {np} off", "!{np} off", "turn {np} off again",
            "cut {np} off", "!let me have {np} off now", "shut down {np}", "click {np} off", "click off {np}",
            "snap {np} off", "keep {np} off", "leave {np} off", "!make sure {np} is off", "!{np} needs to be off",
            "!i would love {np} off", "turn {np} all the way off", "tap {np} off", "get {np} to go off",
        ),
        "valid": (
            "get {np} turned off", "flick {np} off", "!let us have {np} off", "shut off {np}", "power down {np}",
            "switch {np} off again", "!i would like {np} off", "!have {np} off", "flick off {np}",
            "get {np} to switch off", "turn {np} back off", "!{np} should be off", "!i would prefer {np} off",
        ),
        "heldout": (
            "shut {np} all the way off", "get {np} to stop", "flip {np} off", "!let {np} be off", "!we want {np} off",
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
            "!i want {np} at {n} percent", "!{n} percent on {np}", "run {np} at {n} percent",
        ),
        "prompts": (
            "adjust {np} to {n} percent", "set {np} at {n} percent", "move {np} to {n} percent", "set {np} to {n}",
            "!i need {np} at {n} percent", "get {np} up to {n} percent", "keep {np} at {n} percent",
            "raise {np} to {n} percent", "drop {np} to {n} percent", "lower {np} to {n} percent",
            "push {np} to {n} percent", "take {np} to {n} percent", "leave {np} at {n} percent",
            "start {np} at {n} percent", "hold {np} at {n} percent", "!{np} needs to be at {n} percent",
            "let {np} be on {n} percent",
        ),
        "valid": (
            "switch {np} to {n} percent", "get {np} to {n} percent", "put {np} on {n} percent",
            "have {np} set to {n} percent", "!{np} should be at {n} percent", "let {np} be at {n} percent",
            "make {np} {n} percent", "!we want {np} at {n} percent",
        ),
        "heldout": ("go to {n} percent on {np}", "give {np} {n} percent", "!i would like {np} at {n} percent"),
    },
    "brightness": {
        "gold": (
            "make the brightness of {np} {n} percent", "set the brightness of {np} to {n} percent",
            "put {np} at {n} percent brightness", "bring the brightness of {np} to {n} percent",
            "keep the brightness of {np} at {n} percent",
        ),
        "prompts": (
            "set the brightness of {np} to {n}", "put the brightness of {np} on {n} percent",
            "raise the brightness of {np} to {n} percent", "lower the brightness of {np} to {n} percent",
            "give {np} a brightness of {n} percent",
        ),
        "valid": (
            "put the brightness of {np} at {n} percent", "change the brightness of {np} to {n} percent",
            "adjust the brightness of {np} to {n} percent", "make {np} {n} percent bright",
            "turn the brightness of {np} to {n} percent",
        ),
        "heldout": ("turn {np} to {n} percent brightness", "take the brightness of {np} to {n} percent"),
    },
    "color": {
        "gold": (
            "give {np} a {color} color", "let {np} shine {color}", "!{color} for {np}", "make {np} {color}",
            "set {np} to {color}", "turn {np} {color}", "change {np} to {color}", "set the color of {np} to {color}",
            "!i want {np} {color}", "color {np} {color}", "put {np} in {color}", "!{color} on {np}",
            "use {color} for {np}", "make {np} go {color}", "give {np} some {color}",
        ),
        "prompts": (
            "switch {np} to {color}", "make the color of {np} {color}", "turn {np} to {color}", "!i need {np} {color}",
            "paint {np} {color}", "let {np} glow {color}", "show {color} on {np}", "!{np} needs to be {color}",
            "get {np} to {color}", "keep {np} {color}", "switch the color of {np} to {color}",
        ),
        "valid": (
            "make {np} all {color}", "let {np} be {color}", "change the color of {np} to {color}",
            "turn the color of {np} to {color}", "!i would like {np} {color}", "have {np} turn {color}",
            "give {np} the color {color}", "!{np} should be {color}",
        ),
        "heldout": ("bring {np} to {color}", "let {color} be the color of {np}", "!we want {np} {color}"),
    },
    "degrees": {
        "gold": (
            "let {np} go to {n} degrees", "!{n} degrees for {np}", "!{np} must be at {n} degrees",
            "set {np} to {n} degrees", "put {np} at {n} degrees", "change {np} to {n} degrees",
            "turn {np} to {n} degrees", "set the temperature of {np} to {n} degrees", "heat {np} to {n} degrees",
            "!i want {np} at {n} degrees", "!{n} degrees on {np}", "run {np} at {n} degrees",
        ),
        "prompts": (
            "bring {np} to {n} degrees", "adjust {np} to {n} degrees", "set {np} at {n} degrees", "set {np} to {n}",
            "!{np} to {n} degrees", "keep {np} at {n} degrees", "warm {np} up to {n} degrees",
            "raise {np} to {n} degrees", "drop {np} to {n} degrees", "lower {np} to {n} degrees",
            "push {np} to {n} degrees", "take {np} to {n} degrees", "leave {np} at {n} degrees",
            "start {np} at {n} degrees", "hold {np} at {n} degrees", "!{np} needs to be at {n} degrees",
            "let {np} be on {n} degrees",
        ),
        "valid": (
            "switch {np} to {n} degrees", "get {np} to {n} degrees", "put {np} on {n} degrees",
            "have {np} set to {n} degrees", "!{np} should be at {n} degrees",
            "change the temperature of {np} to {n} degrees", "let {np} be at {n} degrees", "make {np} {n} degrees",
            "!we want {np} at {n} degrees", "turn the temperature of {np} to {n} degrees",
        ),
        "heldout": (
            "go to {n} degrees on {np}", "give {np} {n} degrees", "!i would like {np} at {n} degrees",
            "take the temperature of {np} to {n} degrees",
        ),
    },
    "open": {
        "gold": (
            "throw {np} open", "make {np} go up", "!{np} must be open", "open {np}", "raise {np}", "open up {np}",
            "pull up {np}", "lift {np}", "!i want {np} open", "pull {np} up", "roll {np} up", "send {np} up",
            "leave {np} open",
        ),
        "prompts": (
            "get {np} open", "open {np} fully", "bring {np} up", "!i need {np} open", "move {np} up",
            "get {np} to open", "make {np} open", "take {np} up", "push {np} up", "keep {np} open",
            "!make sure {np} is open", "!{np} needs to be open", "!i would love {np} open",
        ),
        "valid": (
            "slide {np} open", "draw {np} open", "roll up {np}", "lift up {np}", "open {np} all the way",
            "!i would like {np} open", "pull {np} open", "raise up {np}", "!{np} should be open",
            "!i would prefer {np} open",
        ),
        "heldout": ("open {np} wide", "have {np} open", "!we want {np} open", "get {np} up"),
    },
    "close": {
        "gold": (
            "make {np} go down", "!{np} must be closed", "close {np}", "lower {np}", "shut {np}", "pull down {np}",
            "drop {np}", "!i want {np} closed", "pull {np} down", "roll {np} down", "send {np} down", "shut {np} tight",
        ),
        "prompts": (
            "get {np} closed", "close {np} fully", "bring {np} down", "!i need {np} closed", "move {np} down",
            "get {np} to close", "make {np} close", "take {np} down", "push {np} down", "keep {np} closed",
            "leave {np} closed", "!make sure {np} is closed", "!{np} needs to be closed", "!i would love {np} closed",
        ),
        "valid": (
            "slide {np} shut", "draw {np} shut", "roll down {np}", "close {np} all the way",
            "!i would like {np} closed", "bring down {np}", "pull {np} shut", "slide {np} down",
            "!{np} should be closed", "!i would prefer {np} closed",
        ),
        "heldout": ("close {np} up", "have {np} closed", "!we want {np} closed", "get {np} down"),
    },
    "lock": {
        "gold": (
            "put the lock on {np}", "lock {np} for the night", "!{np} must be locked", "lock {np}", "lock up {np}",
            "make sure {np} is locked", "secure {np}", "!i want {np} locked", "get {np} locked", "bolt {np}",
            "make {np} lock", "turn the lock on {np}", "put the lock on {np} again",
        ),
        "prompts": (
            "lock {np} up", "keep {np} locked", "!i need {np} locked", "lock down {np}", "check that {np} is locked",
            "get {np} to lock", "close the lock on {np}", "set the lock on {np}", "double lock {np}",
            "!{np} needs to be locked", "!i would love {np} locked", "lock {np} once more",
        ),
        "valid": (
            "leave {np} locked", "have {np} locked", "see that {np} is locked", "!{np} should be locked",
            "!i would like {np} locked", "lock {np} again", "be sure {np} is locked", "!we want {np} locked",
            "!i would prefer {np} locked",
        ),
        "heldout": ("lock {np} tight", "get {np} locked up", "!let {np} be locked", "see to it that {np} is locked"),
    },
    "unlock": {
        "gold": (
            "take the lock off {np}", "let {np} be unlocked", "!{np} must be unlocked", "unlock {np}",
            "make sure {np} is unlocked", "undo the lock on {np}", "!i want {np} unlocked", "get {np} unlocked",
            "open the lock on {np}", "free {np}", "lift the lock on {np}",
        ),
        "prompts": (
            "unbolt {np}", "release the lock on {np}", "keep {np} unlocked", "!i need {np} unlocked",
            "check that {np} is unlocked", "get {np} to unlock", "make {np} unlock", "remove the lock from {np}",
            "!{np} needs to be unlocked", "!i would love {np} unlocked", "unlock {np} once more",
            "take the lock off {np} again",
        ),
        "valid": (
            "leave {np} unlocked", "have {np} unlocked", "see that {np} is unlocked", "!{np} should be unlocked",
            "!i would like {np} unlocked", "unlock {np} again", "be sure {np} is unlocked", "!we want {np} unlocked",
            "!i would prefer {np} unlocked",
        ),
        "heldout": (
            "unlock {np} for our guests", "get {np} unlocked for me", "!it is fine to unlock {np}",
            "see to it that {np} is unlocked",
        ),
    },
    "volume": {
        "gold": (
            "make the volume of {np} {n}", "give {np} a volume of {n}", "!{np} must be at volume {n}",
            "set the volume of {np} to {n}", "turn the volume of {np} to {n}", "put {np} at volume {n}",
            "set {np} to volume {n}", "change the volume of {np} to {n}", "!i want {np} at volume {n}",
            "!volume {n} on {np}", "!volume {n} for {np}", "run {np} at volume {n}",
        ),
        "prompts": (
            "bring the volume of {np} to {n}", "set the volume on {np} to {n}", "turn {np} to volume {n}",
            "turn up the volume of {np} to {n}", "turn down the volume of {np} to {n}", "!i need {np} at volume {n}",
            "take the volume of {np} to {n}", "lower the volume of {np} to {n}", "drop the volume of {np} to {n}",
            "get {np} to volume {n}", "put {np} on volume {n}", "use volume {n} on {np}", "leave {np} at volume {n}",
            "!{np} needs to be at volume {n}",
        ),
        "valid": (
            "put the volume of {np} at {n}", "adjust the volume of {np} to {n}", "have {np} at volume {n}",
            "move the volume of {np} to {n}", "!the volume of {np} should be {n}", "get the volume of {np} to {n}",
            "!{np} should be at volume {n}", "keep {np} at volume {n}", "raise the volume of {np} to {n}",
        ),
        "heldout": (
            "let {np} be at volume {n}", "give me volume {n} on {np}", "!we want {np} at volume {n}",
            "turn {np} up to volume {n}",
        ),
    },
    "channel": {
        "gold": (
            "let me see channel {n} on {np}", "turn {np} over to channel {n}", "!channel {n} for {np}",
            "switch {np} to channel {n}", "put {np} on channel {n}", "change {np} to channel {n}",
            "set {np} to channel {n}", "put channel {n} on {np}", "!i want channel {n} on {np}", "!channel {n} on {np}",
            "go to channel {n} on {np}",
        ),
        "prompts": (
            "turn {np} to channel {n}", "tune {np} to channel {n}", "watch channel {n} on {np}",
            "!i need channel {n} on {np}", "leave {np} on channel {n}", "get {np} to channel {n}",
            "keep {np} on channel {n}", "find channel {n} on {np}", "play channel {n} on {np}",
            "open channel {n} on {np}", "start channel {n} on {np}", "jump to channel {n} on {np}",
            "!{np} needs to be on channel {n}",
        ),
        "valid": (
            "flip {np} to channel {n}", "show channel {n} on {np}", "move {np} to channel {n}",
            "have {np} on channel {n}", "!i would like channel {n} on {np}", "take {np} to channel {n}",
            "!{np} should be on channel {n}", "bring up channel {n} on {np}", "!we want channel {n} on {np}",
        ),
        "heldout": (
            "let {np} be on channel {n}", "give me channel {n} on {np}", "select channel {n} on {np}",
            "!we want {np} on channel {n}",
        ),
    },
    "play": {
        "gold": (
            "let me hear {music} on {np}", "run {music} on {np}", "!{music} for {np}", "play {music} on {np}",
            "play some {music} on {np}", "put {music} on {np}", "play {music} music on {np}", "start {music} on {np}",
            "!i want {music} on {np}", "let {np} play {music}", "get {music} playing on {np}",
            "play more {music} on {np}", "give us some {music} on {np}", "play lots of {music} on {np}",
            "play the best of {music} on {np}",
        ),
        "prompts": (
            "start playing {music} on {np}", "play {music} from {np}", "make {np} play {music}",
            "!i need {music} on {np}", "put on {music} on {np}", "play us {music} on {np}", "get {music} going on {np}",
            "let us hear {music} on {np}", "give me {music} on {np}", "use {np} for {music}", "blast {music} on {np}",
            "play my {music} on {np}", "keep playing {music} on {np}", "!some {music} on {np}",
            "!{np} needs to play {music}", "play an hour of {music} on {np}", "play a few {music} tracks on {np}",
            "send {music} to {np}",
        ),
        "valid": (
            "play a little {music} on {np}", "play {music} over {np}", "have {np} play {music}",
            "play a bit of {music} on {np}", "play {music} through {np}", "!i would like {music} on {np}",
            "get {np} to play {music}", "play a bunch of {music} on {np}", "stream {music} on {np}",
            "!we want {music} on {np}",
        ),
        "heldout": (
            "let {music} play on {np}", "play nothing but {music} on {np}", "turn on some {music} on {np}",
            "!i want to hear {music} on {np}",
        ),
    },
}  # fmt: skip
