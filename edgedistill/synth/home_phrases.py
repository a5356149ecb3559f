"""Phrases of the home-command grammar, by tier: how a command is worded, placed and framed, and what is out of scope.

`{np}` is the device with its place ("the attic fan"), `{n}`, `{color}`, `{music}` are the value. A phrase that begins
with `!` is a whole sentence and takes no frame. `gold` phrases also serve `prompts`; `heldout` and `valid` phrases and
frames stand nowhere else, and every one of their utterances has at least one of them.
"""

from __future__ import annotations

FRAMES = {
    "gold": ("{c}", "please {c}", "{c} please", "can you {c}", "could you {c}", "i want you to {c}", "hey {c}"),
    "prompts": (
        "would you {c}", "will you {c}", "ok {c}", "now {c}", "i need you to {c}", "can you please {c}", "so {c}",
        "could you please {c}", "{c} now", "{c} right away", "{c} thanks", "{c} thank you", "quickly {c}", "just {c}",
        "{c} when you can", "i'd like you to {c}", "be so kind and {c}", "computer {c}", "assistant {c}", "um {c}",
        "{c} if you can", "it's late so {c}", "we have guests so {c}", "before i leave {c}", "i'm home {c}",
        "do me a favor and {c}", "it would be nice if you could {c}", "could you maybe {c}", "good morning {c}",
        "good evening {c}", "{c} right now please", "would it be possible to {c}",
    ),
    "valid": ("kindly {c}", "i would like you to {c}", "hi {c}", "{c} at once", "are you able to {c}", "next {c}"),
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
        ("in the {room} ", "the {dev}", ""),
    ),
    "prompts": (
        ("", "my {room} {dev}", ""), ("", "our {room} {dev}", ""), ("", "the {dev} inside the {room}", ""),
        ("", "the {dev} out in the {room}", ""), ("", "the {dev}", " in the {room}"), ("", "{room} {dev}", ""),
        ("over in the {room} ", "the {dev}", ""), ("", "the {dev} we have in the {room}", ""),
    ),
    "valid": (("", "the {dev} in our {room}", ""), ("", "the {dev} of the {room}", "")),
    "heldout": (
        ("", "the {dev} in my {room}", ""), ("", "the {dev} over in the {room}", ""),
        ("", "the {dev} down in the {room}", ""), ("for the {room} ", "the {dev}", ""),
    ),
}  # fmt: skip
NO_ROOM = {"gold": ("the {dev}",), "prompts": ("my {dev}", "our {dev}", "{dev}"), "valid": (), "heldout": ()}

PHRASES = {
    "on": {
        "gold": ("turn on {np}", "turn {np} on", "switch on {np}", "power on {np}"),
        "prompts": (
            "switch {np} on", "put {np} on", "activate {np}", "enable {np}", "power {np} on", "get {np} switched on",
            "!i want {np} on", "!i need {np} on", "!{np} on", "!{np} on please", "turn {np} back on",
        ),
        "valid": ("get {np} turned on", "flip {np} on", "!let me have {np} on"),
        "heldout": ("flip on {np}", "power up {np}", "switch {np} back on", "!i would like {np} on", "click {np} on"),
    },
    "off": {
        "gold": ("turn off {np}", "turn {np} off", "switch off {np}", "power off {np}"),
        "prompts": (
            "switch {np} off", "shut {np} off", "deactivate {np}", "disable {np}", "power {np} off", "kill {np}",
            "!i want {np} off", "!i need {np} off", "!{np} off", "!{np} off please", "get {np} switched off",
        ),
        "valid": ("get {np} turned off", "flip {np} off", "!let me have {np} off"),
        "heldout": ("shut off {np}", "power down {np}", "cut off {np}", "!i would like {np} off", "click {np} off"),
    },
    "arm": {"gold": ("arm {np}",), "prompts": (), "valid": (), "heldout": ()},
    "disarm": {"gold": ("disarm {np}",), "prompts": (), "valid": (), "heldout": ()},
    "dim": {
        "gold": ("dim {np}", "dim {np} a bit", "make {np} darker"),
        "prompts": ("dim {np} a little", "dim {np} down", "make {np} dimmer", "!i want {np} dimmed"),
        "valid": ("make {np} less bright",),
        "heldout": ("dim {np} somewhat", "make {np} a bit dimmer", "make {np} a little darker"),
    },
    "brighten": {
        "gold": ("brighten {np}", "brighten {np} a bit", "make {np} brighter"),
        "prompts": ("brighten {np} a little", "brighten up {np}", "make {np} lighter", "!i want {np} brightened"),
        "valid": ("make {np} more bright",),
        "heldout": ("brighten {np} somewhat", "make {np} a bit brighter", "make {np} a little brighter"),
    },
    "percent": {
        "gold": ("set {np} to {n} percent", "put {np} at {n} percent", "change {np} to {n} percent"),
        "prompts": (
            "bring {np} to {n} percent", "adjust {np} to {n} percent", "set {np} at {n} percent",
            "!{np} to {n} percent",
            "turn {np} to {n} percent", "!i want {np} at {n} percent", "move {np} to {n} percent", "set {np} to {n}",
        ),
        "valid": ("switch {np} to {n} percent", "get {np} to {n} percent"),
        "heldout": ("put {np} on {n} percent", "have {np} set to {n} percent", "!{np} should be at {n} percent"),
    },
    "brightness": {
        "gold": ("set the brightness of {np} to {n} percent", "dim {np} to {n} percent"),
        "prompts": ("brighten {np} to {n} percent", "set the brightness of {np} to {n}",
                    "dim {np} down to {n} percent"),
        "valid": ("put the brightness of {np} at {n} percent",),
        "heldout": ("change the brightness of {np} to {n} percent", "adjust the brightness of {np} to {n} percent"),
    },
    "color": {
        "gold": ("make {np} {color}", "set {np} to {color}", "turn {np} {color}"),
        "prompts": ("change {np} to {color}", "set the color of {np} to {color}", "!i want {np} {color}",
                    "switch {np} to {color}", "make the color of {np} {color}"),
        "valid": ("color {np} {color}",),
        "heldout": ("change the color of {np} to {color}", "give {np} a {color} color", "put {np} on {color}"),
    },
    "degrees": {
        "gold": ("set {np} to {n} degrees", "put {np} at {n} degrees", "change {np} to {n} degrees"),
        "prompts": (
            "bring {np} to {n} degrees", "adjust {np} to {n} degrees", "set {np} at {n} degrees", "set {np} to {n}",
            "set the temperature of {np} to {n} degrees", "heat {np} to {n} degrees", "!i want {np} at {n} degrees",
            "!{np} to {n} degrees", "run {np} at {n} degrees",
        ),
        "valid": ("switch {np} to {n} degrees", "get {np} to {n} degrees"),
        "heldout": ("put {np} on {n} degrees", "have {np} set to {n} degrees", "!{np} should be at {n} degrees",
                    "change the temperature of {np} to {n} degrees"),
    },
    "open": {
        "gold": ("open {np}", "raise {np}", "open up {np}"),
        "prompts": ("pull up {np}", "pull {np} up", "get {np} open", "lift {np}", "!i want {np} open",
                    "open {np} fully"),
        "valid": ("slide {np} open",),
        "heldout": ("roll up {np}", "raise up {np}", "have {np} opened", "!i would like {np} open"),
    },
    "close": {
        "gold": ("close {np}", "lower {np}", "shut {np}"),
        "prompts": ("pull down {np}", "pull {np} down", "get {np} closed", "drop {np}", "!i want {np} closed",
                    "close {np} fully"),
        "valid": ("slide {np} shut",),
        "heldout": ("roll down {np}", "let down {np}", "have {np} closed", "!i would like {np} closed"),
    },
    "lock": {
        "gold": ("lock {np}", "lock up {np}", "make sure {np} is locked"),
        "prompts": ("get {np} locked", "bolt {np}", "secure {np}", "!i want {np} locked", "lock {np} up",
                    "keep {np} locked"),
        "valid": ("leave {np} locked",),
        "heldout": ("have {np} locked", "put the lock on {np}", "!{np} should be locked", "latch {np}"),
    },
    "unlock": {
        "gold": ("unlock {np}", "make sure {np} is unlocked", "undo the lock on {np}"),
        "prompts": ("get {np} unlocked", "unbolt {np}", "release the lock on {np}", "!i want {np} unlocked",
                    "keep {np} unlocked"),
        "valid": ("leave {np} unlocked",),
        "heldout": ("have {np} unlocked", "take the lock off {np}", "!{np} should be unlocked", "unlatch {np}"),
    },
    "mute": {
        "gold": ("mute {np}", "silence {np}", "mute the sound of {np}"),
        "prompts": ("put {np} on mute", "make {np} silent", "!i want {np} muted", "set {np} to mute", "quiet {np}"),
        "valid": ("get {np} muted",),
        "heldout": ("have {np} muted", "turn {np} to mute", "hush {np}", "mute the sound on {np}"),
    },
    "volume": {
        "gold": ("set the volume of {np} to {n}", "turn the volume of {np} to {n}", "put {np} at volume {n}"),
        "prompts": ("change the volume of {np} to {n}", "set {np} to volume {n}", "bring the volume of {np} to {n}",
                    "!i want {np} at volume {n}", "set the volume on {np} to {n}", "turn {np} to volume {n}"),
        "valid": ("put the volume of {np} at {n}",),
        "heldout": ("adjust the volume of {np} to {n}", "have {np} at volume {n}", "move the volume of {np} to {n}",
                    "!the volume of {np} should be {n}"),
    },
    "channel": {
        "gold": ("switch {np} to channel {n}", "put {np} on channel {n}", "change {np} to channel {n}"),
        "prompts": ("set {np} to channel {n}", "turn {np} to channel {n}", "tune {np} to channel {n}",
                    "go to channel {n} on {np}",
                    "!i want channel {n} on {np}", "put channel {n} on {np}"),
        "valid": ("flip {np} to channel {n}",),
        "heldout": ("show channel {n} on {np}", "move {np} to channel {n}", "have {np} on channel {n}",
                    "!i would like channel {n} on {np}"),
    },
    "play": {
        "gold": ("play {music} on {np}", "play some {music} on {np}", "put {music} on {np}"),
        "prompts": ("play {music} music on {np}", "start playing {music} on {np}", "play {music} from {np}",
                    "!i want {music} on {np}", "let {np} play {music}", "make {np} play {music}"),
        "valid": ("play a little {music} on {np}",),
        "heldout": ("have {np} play {music}", "play a bit of {music} on {np}", "play {music} through {np}",
                    "!i would like {music} on {np}"),
    },
    "pause": {
        "gold": ("pause {np}", "pause the music on {np}", "pause the song on {np}"),
        "prompts": ("put {np} on pause", "pause what is playing on {np}", "!i want {np} paused", "set {np} to pause"),
        "valid": ("get {np} paused",),
        "heldout": ("have {np} paused", "pause the playback on {np}", "pause the tune on {np}"),
    },
    "start": {
        "gold": ("start {np}", "run {np}", "start cleaning with {np}"),
        "prompts": ("get {np} started", "let {np} clean", "begin cleaning with {np}", "!i want {np} to start",
                    "start up {np}",
                    "make {np} clean", "!i want {np} to run", "let {np} run", "send out {np}"),
        "valid": ("get {np} cleaning",),
        "heldout": ("have {np} start", "let {np} start", "make {np} start cleaning", "begin a cleaning run with {np}"),
    },
    "stop": {
        "gold": ("stop {np}", "stop cleaning with {np}", "make {np} stop"),
        "prompts": ("get {np} stopped", "halt {np}", "end cleaning with {np}", "!i want {np} to stop", "let {np} stop",
                    "stop running {np}"),
        "valid": ("get {np} to stop",),
        "heldout": ("have {np} stop", "make {np} stop cleaning", "bring {np} to a stop",
                    "end the cleaning run of {np}"),
    },
    "dock": {
        "gold": ("dock {np}", "send {np} back to its dock", "send {np} home"),
        "prompts": ("return {np} to its dock", "send {np} to its charger", "bring {np} back to its base", "park {np}",
                    "!i want {np} docked", "send {np} back home", "get {np} docked"),
        "valid": ("send {np} to its base",),
        "heldout": ("have {np} docked", "bring {np} back to its dock", "let {np} go back to its charger",
                    "return {np} home"),
    },
}  # fmt: skip

# Requests that are no home command. {kdev} is a device asked about; {room}, {n} and the rest are fillers.
OUT_OF_SCOPE = {
    "gold": (
        "what is the weather in {city}", "tell me a joke about {thing}", "what is {n} plus {m}", "call {person}",
        "send {person} a message that i am late", "add {thing} to my shopping list", "remind me to {task}",
        "how far is {city}", "who invented {thing}", "order {thing}", "how do you say {thing} in french",
        "will it rain in {city} tomorrow", "set a timer for {n} minutes", "i am tired", "good night", "who are you",
    ),
    "prompts": (
        "how warm is it in {city}", "what is the time in {city}", "book a hotel in {city}", "sing a song about {thing}",
        "what is {n} times {m}", "what is {n} minus {m}", "divide {n} by {m}", "is {n} a prime number", "text {person}",
        "write an email to {person}", "is {person} at home", "when is the birthday of {person}", "video call {person}",
        "read me the news about {thing}", "how much do {thing} cost", "where can i buy {thing}",
        "find a recipe with {thing}",
        "put {task} on my calendar", "did i already {task}", "i have to {task}", "when should i {task}",
        "wake me up in {n} minutes", "how many people live in {city}", "show me a map of {city}", "i love {thing}",
        "find flights to {city}", "translate {thing} into german", "what does {thing} mean", "spell {thing}",
        "set a reminder to {task}", "add {task} to my list", "what is the capital near {city}",
        "who won the game in {city}",
        "play a game with me", "what day is it", "how are you", "thank you", "never mind", "i am hungry", "flip a coin",
        "roll a dice", "pick a number up to {n}", "convert {n} miles to kilometers", "what is {n} percent of {m}",
        "tell {person} that dinner is ready", "take a picture of {thing}", "start a story about {thing}",
        "open a book about {thing}", "turn to page {n}", "stop talking about {thing}", "set up a meeting with {person}",
        "what should i cook with {thing}", "how old is {person}", "draw {thing}", "can you see {thing}",
        "are {thing} real",
    ),
    "valid": (
        "give me directions to {city}", "tell me something about {thing}", "leave a note for {person}",
        "subtract {n} from {m}",
        "i forgot to {task}", "what is the fastest way to {task}", "count to {n}", "sell {thing}",
    ),
    "heldout": (
        "what is the forecast for {city}", "make me laugh with {thing}", "add up {n} and {m}", "phone {person}",
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
        "where did we buy the {kdev}", "how big is the {room}", "paint the {room} {color}",
    ),
    "prompts": (
        "how old is the {kdev} in the {room}", "who invented the {kdev}", "is the {kdev} in the {room} broken",
        "what color is the {kdev}", "how does a {kdev} work", "when did people start to use a {kdev}",
        "i like the {kdev}",
        "tell me a story about a {kdev}", "order a new {kdev}", "what is the best {kdev} for the {room}",
        "sell the {kdev}",
        "how much power does the {kdev} use", "was the {kdev} expensive", "draw a {kdev}", "where is the {room}",
        "is there a {kdev} in the {room}", "what is in the {room}", "who is in the {room}", "how do i repair a {kdev}",
        "put flowers in the {room}", "play hide and seek in the {room}", "who left the {room}",
        "i will be in the {room}",
        "set the table in the {room}", "write a letter about the {kdev}", "find pictures of a {kdev}",
        "i dream of a {kdev}",
        "should the {room} be {color}", "take a nap in the {room}", "decorate the {room} in {color}",
    ),
    "valid": (
        "can a {kdev} be recycled", "what does a {kdev} weigh", "rent out the {room}",
        "how many people fit in the {room}",
    ),
    "heldout": (
        "tell me about the history of the {kdev}", "how do i clean the {kdev} in the {room}",
        "explain how a {kdev} works",
        "do we need a new {kdev} for the {room}", "what happens inside a {kdev}",
        "is {color} a good color for the {room}",
        "meet me in the {room}", "read me a review of the {kdev}", "how many windows does the {room} have",
    ),
}  # fmt: skip
ASKED_ABOUT = {
    "gold": ("light bulb", "fan", "oven", "tv"),
    "prompts": ("heater", "speaker", "vacuum", "alarm", "lamp", "door", "lock", "television", "radiator"),
    "valid": ("door lock", "stove light"),
    "heldout": ("ceiling lamp", "smart lock", "window blind", "loudspeaker"),
}
