"""Phrases of the home-command grammar, by tier: how a command is worded, placed and framed, and what is out of scope.

`{np}` is the device with its place ("the attic fan"), `{n}`, `{color}`, `{music}` are the value. A phrase that begins
with `!` is a whole sentence and takes no frame. `gold` phrases also serve `prompts`; `heldout` and `valid` phrases and
frames stand nowhere else, and every one of their utterances has at least one of them.
"""

from __future__ import annotations

FRAMES = {
    "gold": (
        "{c}", "{c}", "please {c}", "{c} please", "can you {c}", "could you {c}", "i want you to {c}", "hey {c}",
        "would you {c}", "i need you to {c}", "{c} now", "could you please {c}", "{c} thanks", "ok {c}", "just {c}",
        "it is late so {c}", "{c} when you can", "do me a favor and {c}", "i'd like you to {c}",
    ),
    "prompts": (
        "will you {c}", "now {c}", "can you please {c}", "so {c}", "{c} right away", "{c} thank you", "quickly {c}",
        "be so kind and {c}", "computer {c}", "assistant {c}", "um {c}", "{c} if you can", "good morning {c}",
        "we have guests so {c}", "before i leave {c}", "i'm home {c}", "it would be nice if you could {c}",
        "could you maybe {c}", "good evening {c}", "{c} right now please", "would it be possible to {c}",
        "please just {c}",
        "i would love it if you could {c}", "{c} before i leave", "you should {c}", "try to {c}", "please go and {c}",
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
        ("", "our {room} {dev}", ""), ("", "the {dev} out in the {room}", ""), ("", "{room} {dev}", ""),
        ("over in the {room} ", "the {dev}", ""), ("", "the {dev} we have in the {room}", ""),
        ("", "the {dev} from the {room}", ""), ("", "the {dev} here in the {room}", ""),
    ),
    "valid": (("", "the {dev} in our {room}", ""), ("", "the {dev} of the {room}", "")),
    "heldout": (
        ("", "the {dev} in my {room}", ""), ("", "the {dev} over in the {room}", ""), ("for the {room} ",
        "the {dev}", ""),
        ("", "the {dev} back in the {room}", ""),
    ),
}  # fmt: skip
NO_ROOM = {"gold": ("the {dev}", "my {dev}"), "prompts": ("our {dev}", "{dev}"), "valid": (), "heldout": ()}

PHRASES = {
    "on": {
        "gold": (
            "turn on {np}", "turn {np} on", "switch on {np}", "switch {np} on", "power on {np}", "activate {np}",
            "enable {np}", "put {np} on", "!i want {np} on", "!{np} on please", "start up {np}",
        ),
        "prompts": (
            "power {np} on", "get {np} switched on", "!i need {np} on", "!{np} on", "turn {np} back on", "put on {np}",
            "turn {np} on again", "set {np} to on", "fire up {np}", "get {np} going", "!let me have {np} on now",
        ),
        "valid": ("get {np} turned on", "flick {np} on", "!let us have {np} on"),
        "heldout": ("flip on {np}", "power up {np}", "switch {np} back on", "!i would like {np} on", "!have {np} on"),
    },
    "off": {
        "gold": (
            "turn off {np}", "turn {np} off", "switch off {np}", "switch {np} off", "power off {np}", "deactivate {np}",
            "disable {np}", "shut {np} off", "!i want {np} off", "!{np} off please", "shut down {np}",
        ),
        "prompts": (
            "power {np} off", "get {np} switched off", "!i need {np} off", "!{np} off", "turn {np} off again",
            "kill {np}",
            "shut {np} down", "set {np} to off", "cut {np} off", "!let me have {np} off now",
        ),
        "valid": ("get {np} turned off", "flick {np} off", "!let us have {np} off"),
        "heldout": ("shut off {np}", "power down {np}", "switch {np} off again", "!i would like {np} off",
                    "!have {np} off"),
    },
    "arm": {"gold": ("arm {np}",), "prompts": (), "valid": (), "heldout": ()},
    "disarm": {"gold": ("disarm {np}",), "prompts": (), "valid": (), "heldout": ()},
    "dim": {
        "gold": ("dim {np}", "dim {np} a bit", "make {np} darker", "make {np} dimmer", "!i want {np} dimmed"),
        "prompts": ("dim {np} a little", "dim {np} down", "make {np} a bit darker", "!i want {np} darker",
                    "get {np} dimmed"),
        "valid": ("make {np} a lot darker",),
        "heldout": ("dim {np} somewhat", "make {np} a bit dimmer", "make {np} a little darker"),
    },
    "brighten": {
        "gold": ("brighten {np}", "brighten {np} a bit", "make {np} brighter", "make {np} lighter",
                 "!i want {np} brighter"),
        "prompts": ("brighten {np} a little", "brighten up {np}", "make {np} a bit lighter", "get {np} brighter"),
        "valid": ("make {np} a lot brighter",),
        "heldout": ("brighten {np} somewhat", "make {np} a bit brighter", "make {np} a little brighter"),
    },
    "percent": {
        "gold": (
            "set {np} to {n} percent", "put {np} at {n} percent", "change {np} to {n} percent",
            "turn {np} to {n} percent",
            "bring {np} to {n} percent", "!{np} to {n} percent", "!i want {np} at {n} percent",
        ),
        "prompts": (
            "adjust {np} to {n} percent", "set {np} at {n} percent", "move {np} to {n} percent", "set {np} to {n}",
            "!i need {np} at {n} percent", "get {np} up to {n} percent", "run {np} at {n} percent",
            "keep {np} at {n} percent",
        ),
        "valid": ("switch {np} to {n} percent", "get {np} to {n} percent"),
        "heldout": ("put {np} on {n} percent", "have {np} set to {n} percent", "!{np} should be at {n} percent"),
    },
    "brightness": {
        "gold": (
            "set the brightness of {np} to {n} percent", "dim {np} to {n} percent", "brighten {np} to {n} percent",
        ),
        "prompts": (
            "set the brightness of {np} to {n}", "dim {np} down to {n} percent",
            "put the brightness of {np} on {n} percent",
        ),
        "valid": ("put the brightness of {np} at {n} percent",),
        "heldout": ("change the brightness of {np} to {n} percent", "adjust the brightness of {np} to {n} percent"),
    },
    "color": {
        "gold": (
            "make {np} {color}", "set {np} to {color}", "turn {np} {color}", "change {np} to {color}",
            "set the color of {np} to {color}", "!i want {np} {color}", "color {np} {color}",
        ),
        "prompts": (
            "switch {np} to {color}", "make the color of {np} {color}", "turn {np} to {color}", "!i need {np} {color}",
            "put {np} in {color}", "light up {np} in {color}",
        ),
        "valid": ("make {np} all {color}",),
        "heldout": ("change the color of {np} to {color}", "turn the color of {np} to {color}",
                    "!i would like {np} {color}"),
    },
    "degrees": {
        "gold": (
            "set {np} to {n} degrees", "put {np} at {n} degrees", "change {np} to {n} degrees",
            "turn {np} to {n} degrees",
            "set the temperature of {np} to {n} degrees", "heat {np} to {n} degrees", "!i want {np} at {n} degrees",
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
        "gold": ("open {np}", "raise {np}", "open up {np}", "pull up {np}", "lift {np}", "!i want {np} open"),
        "prompts": ("pull {np} up", "get {np} open", "open {np} fully", "bring {np} up", "roll {np} up",
                    "!i need {np} open"),
        "valid": ("slide {np} open",),
        "heldout": ("roll up {np}", "lift up {np}", "open {np} all the way", "!i would like {np} open"),
    },
    "close": {
        "gold": ("close {np}", "lower {np}", "shut {np}", "pull down {np}", "drop {np}", "!i want {np} closed"),
        "prompts": (
            "pull {np} down", "get {np} closed", "close {np} fully", "bring {np} down", "roll {np} down",
            "!i need {np} closed",
        ),
        "valid": ("slide {np} shut",),
        "heldout": ("roll down {np}", "let down {np}", "close {np} all the way", "!i would like {np} closed"),
    },
    "lock": {
        "gold": ("lock {np}", "lock up {np}", "make sure {np} is locked", "secure {np}", "!i want {np} locked",
                 "get {np} locked"),
        "prompts": ("bolt {np}", "lock {np} up", "keep {np} locked", "!i need {np} locked", "lock down {np}",
                    "check that {np} is locked"),
        "valid": ("leave {np} locked",),
        "heldout": ("have {np} locked", "see that {np} is locked", "!{np} should be locked",
                    "!i would like {np} locked"),
    },
    "unlock": {
        "gold": (
            "unlock {np}", "make sure {np} is unlocked", "undo the lock on {np}", "!i want {np} unlocked",
            "get {np} unlocked",
        ),
        "prompts": ("unbolt {np}", "release the lock on {np}", "keep {np} unlocked", "!i need {np} unlocked",
                    "check that {np} is unlocked"),
        "valid": ("leave {np} unlocked",),
        "heldout": ("have {np} unlocked", "see that {np} is unlocked", "!{np} should be unlocked",
                    "!i would like {np} unlocked"),
    },
    "mute": {
        "gold": ("mute {np}", "silence {np}", "mute the sound of {np}", "put {np} on mute", "make {np} silent",
                 "!i want {np} muted"),
        "prompts": ("set {np} to mute", "quiet {np}", "get {np} silent", "!i need {np} muted",
                    "turn off the sound of {np}"),
        "valid": ("get {np} muted",),
        "heldout": ("have {np} muted", "turn {np} to mute", "mute the sound on {np}", "!i would like {np} muted"),
    },
    "volume": {
        "gold": (
            "set the volume of {np} to {n}", "turn the volume of {np} to {n}", "put {np} at volume {n}",
            "set {np} to volume {n}",
            "change the volume of {np} to {n}", "!i want {np} at volume {n}",
        ),
        "prompts": (
            "bring the volume of {np} to {n}", "set the volume on {np} to {n}", "turn {np} to volume {n}",
            "!volume {n} on {np}",
            "turn up the volume of {np} to {n}", "turn down the volume of {np} to {n}", "!i need {np} at volume {n}",
        ),
        "valid": ("put the volume of {np} at {n}",),
        "heldout": (
            "adjust the volume of {np} to {n}", "have {np} at volume {n}", "move the volume of {np} to {n}",
            "!the volume of {np} should be {n}",
        ),
    },
    "channel": {
        "gold": (
            "switch {np} to channel {n}", "put {np} on channel {n}", "change {np} to channel {n}",
            "set {np} to channel {n}",
            "put channel {n} on {np}", "!i want channel {n} on {np}",
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
            "play {music} on {np}", "play some {music} on {np}", "put {music} on {np}", "play {music} music on {np}",
            "start {music} on {np}", "!i want {music} on {np}", "let {np} play {music}",
        ),
        "prompts": (
            "start playing {music} on {np}", "play {music} from {np}", "make {np} play {music}",
            "!i need {music} on {np}",
            "put on {music} on {np}", "play us {music} on {np}", "get {music} on {np}",
        ),
        "valid": ("play a little {music} on {np}",),
        "heldout": (
            "have {np} play {music}", "play a bit of {music} on {np}", "play {music} through {np}",
            "!i would like {music} on {np}",
        ),
    },
    "pause": {
        "gold": ("pause {np}", "pause the music on {np}", "pause the song on {np}", "put {np} on pause",
                 "!i want {np} paused"),
        "prompts": ("pause what is playing on {np}", "set {np} to pause", "!i need {np} paused",
                    "pause {np} for a moment"),
        "valid": ("get {np} paused",),
        "heldout": ("have {np} paused", "pause the playback on {np}", "pause the tune on {np}",
                    "!i would like {np} paused"),
    },
    "start": {
        "gold": (
            "start {np}", "run {np}", "start cleaning with {np}", "let {np} clean", "!i want {np} to start",
            "get {np} started",
        ),
        "prompts": (
            "begin cleaning with {np}", "make {np} clean", "!i want {np} to clean", "let {np} run", "send out {np}",
            "make {np} start", "have {np} clean", "!i need {np} to start",
        ),
        "valid": ("get {np} cleaning",),
        "heldout": ("have {np} start", "let {np} start", "make {np} start cleaning", "!i would like {np} to start"),
    },
    "stop": {
        "gold": ("stop {np}", "stop cleaning with {np}", "make {np} stop", "halt {np}", "!i want {np} to stop",
                 "get {np} stopped"),
        "prompts": ("end cleaning with {np}", "let {np} stop", "stop running {np}", "have {np} halt",
                    "!i need {np} to stop"),
        "valid": ("get {np} to stop",),
        "heldout": ("have {np} stop", "make {np} stop cleaning", "have {np} stopped", "!i would like {np} to stop"),
    },
    "dock": {
        "gold": (
            "dock {np}", "send {np} back to its dock", "send {np} home", "return {np} to its dock",
            "send {np} to its charger",
            "!i want {np} docked", "bring {np} home",
        ),
        "prompts": (
            "bring {np} back to its base", "park {np}", "send {np} back home", "get {np} docked", "let {np} go home",
            "return {np} to its charger", "!i need {np} docked",
        ),
        "valid": ("send {np} to its dock",),
        "heldout": ("have {np} docked", "bring {np} back to its dock", "send {np} back to its charger",
                    "!i would like {np} docked"),
    },
}  # fmt: skip

# Requests that are no home command. {kdev} is a device asked about; {room}, {n} and the rest are fillers.
OUT_OF_SCOPE = {
    "gold": (
        "what is the weather in {city}", "tell me a joke about {thing}", "what is {n} plus {m}", "call {person}",
        "send {person} a message that i am late", "add {thing} to my shopping list", "remind me to {task}",
        "how far is {city}", "who invented {thing}", "order {thing}", "how do you say {thing} in french",
        "will it rain in {city} tomorrow", "set a timer for {n} minutes", "i am tired", "good night", "who are you",
        "what is {n} times {m}", "text {person}", "i have to {task}", "find a recipe with {thing}", "i love {thing}",
        "what is the time in {city}", "is {person} at home", "open a book about {thing}", "turn to page {n}",
        "draw {thing}", "play a game with me", "when should i {task}", "book a hotel in {city}", "how are you",
        "translate {thing} into german", "what does {thing} mean", "write an email to {person}",
        "tell me about {thing}",
    ),
    "prompts": (
        "how warm is it in {city}", "sing a song about {thing}", "what is {n} minus {m}", "divide {n} by {m}",
        "is {n} a prime number", "when is the birthday of {person}", "video call {person}", "spell {thing}",
        "read me the news about {thing}", "how much do {thing} cost", "where can i buy {thing}",
        "put {task} on my calendar", "did i already {task}", "wake me up in {n} minutes", "show me a map of {city}",
        "how many people live in {city}", "find flights to {city}", "set a reminder to {task}", "add {task} to my list",
        "what is the capital near {city}", "who won the game in {city}", "what day is it", "thank you", "never mind",
        "i am hungry", "flip a coin", "roll a dice", "pick a number up to {n}", "convert {n} miles to kilometers",
        "what is {n} percent of {m}", "tell {person} that dinner is ready", "take a picture of {thing}",
        "start a story about {thing}", "stop talking about {thing}", "set up a meeting with {person}",
        "close the meeting",
        "what should i cook with {thing}", "how old is {person}", "can you see {thing}", "are {thing} real",
        "what do you know about {thing}", "why do people like {thing}", "ask {person} to {task}",
        "say hello to {person}",
        "i want to go to {city}", "i want to {task}", "how long does it take to {task}", "look up {thing}",
        "compare {thing}",
    ),
    "valid": (
        "give me directions to {city}", "tell me something about {thing}", "leave a note for {person}",
        "subtract {n} from {m}", "i forgot to {task}", "what is the fastest way to {task}", "sell {thing}",
    ),
    "heldout": (
        "what is the forecast for {city}", "make me laugh with a joke about {thing}", "add up {n} and {m}",
        "phone {person}",
        "let {person} know that i am on my way", "put {thing} on the grocery list", "don't let me forget to {task}",
        "how long is the drive to {city}", "what do {thing} look like", "buy {thing} online",
        "explain {thing} to a child",
        "do i need an umbrella in {city}", "schedule a call with {person}", "write a poem about {thing}",
        "what is the square root of {n}", "turn the page", "change the subject", "i am bored",
    ),
}  # fmt: skip
QUESTIONS = {
    "gold": (
        "how much does a {kdev} cost", "what is a {kdev}", "why is the {kdev} in the {room} so old",
        "who made the {kdev}",
        "where did we buy the {kdev}", "how big is the {room}", "paint the {room} {color}", "how does a {kdev} work",
        "tell me a story about a {kdev}", "is the {kdev} in the {room} broken", "who invented the {kdev}",
        "what is the best {kdev} for the {room}", "order a new {kdev}", "i like the {kdev} in the {room}",
        "draw a {kdev}",
        "how do i repair a {kdev}", "who is in the {room}", "put flowers in the {room}", "how old is the {kdev}",
        "is there a {kdev} in the {room}", "when was the {kdev} invented", "should i buy a {kdev}",
        "is a {kdev} expensive",
    ),
    "prompts": (
        "what color is the {kdev}", "when did people start to use a {kdev}", "i like the {kdev}", "sell the {kdev}",
        "how much power does the {kdev} use", "was the {kdev} expensive", "where is the {room}",
        "what is in the {room}",
        "play hide and seek in the {room}", "who left the {room}", "i will be in the {room}",
        "set the table in the {room}",
        "write a letter about the {kdev}", "find pictures of a {kdev}", "i dream of a {kdev}",
        "take a nap in the {room}",
        "should the {room} be {color}", "decorate the {room} in {color}", "who repaired the {kdev} in the {room}",
        "why do people buy a {kdev}", "how heavy is the {kdev}", "what is the {kdev} made of", "i hate the {kdev}",
        "what does the {kdev} in the {room} do", "where was the {kdev} made", "is it safe to touch a {kdev}",
        "name a good {kdev}", "describe the {kdev} in the {room}", "how long will a {kdev} last",
        "do you like the {kdev}",
        "which {kdev} should i buy for the {room}", "how many people are in the {room}", "what smells in the {room}",
    ),
    "valid": (
        "can i recycle a {kdev}", "how loud is a {kdev}", "who broke the {kdev} in the {room}",
        "how warm is the {room}",
    ),
    "heldout": (
        "tell me about the history of the {kdev}", "how do i clean the {kdev} in the {room}",
        "explain how a {kdev} works",
        "do we need a new {kdev} for the {room}", "what happens inside a {kdev}",
        "is {color} a good color for the {room}",
        "meet me in the {room}", "read me a review of the {kdev}", "how many windows does the {room} have",
    ),
}  # fmt: skip
ASKED_ABOUT = (
    "light", "light bulb", "lamp", "ceiling light", "fan", "ceiling fan", "heater", "radiator", "door", "lock",
    "door lock",
    "tv", "television", "speaker", "stereo", "vacuum", "robot vacuum", "oven", "alarm", "alarm system",
)  # fmt: skip
