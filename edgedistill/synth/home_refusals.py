"""Sentences of the home-command grammar that are no home command, by tier as in `home_phrases`."""

from __future__ import annotations

# {kdev} is a device asked about, in the same words in every split; {room}, {n} and the rest are fillers of the tier.
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
        "close the meeting", "what should i cook with {thing}", "how old is {person}", "can you see {thing}",
        "are {thing} real", "what do you know about {thing}", "why do people like {thing}", "ask {person} to {task}",
        "say hello to {person}", "i want to go to {city}", "i want to {task}", "how long does it take to {task}",
        "look up {thing}", "compare {thing}",
    ),
    "valid": (
        "give me directions to {city}", "tell me something about {thing}", "leave a note for {person}",
        "subtract {n} from {m}", "i forgot to {task}", "what is the fastest way to {task}", "sell {thing}",
    ),
    "heldout": (
        "what is the forecast for {city}", "make me laugh with a joke about {thing}", "add up {n} and {m}",
        "phone {person}", "let {person} know that i am on my way", "put {thing} on the grocery list",
        "don't let me forget to {task}", "how long is the drive to {city}", "what do {thing} look like",
        "buy {thing} online", "explain {thing} to a child", "do i need an umbrella in {city}",
        "schedule a call with {person}", "write a poem about {thing}", "what is the square root of {n}",
        "turn the page", "change the subject", "i am bored",
    ),
}  # fmt: skip
QUESTIONS = {
    "gold": (
        "how much does a {kdev} cost", "what is a {kdev}", "why is the {kdev} in the {room} so old",
        "who made the {kdev}", "where did we buy the {kdev}", "how big is the {room}", "paint the {room} {color}",
        "how does a {kdev} work", "tell me a story about a {kdev}", "is the {kdev} in the {room} broken",
        "who invented the {kdev}", "what is the best {kdev} for the {room}", "order a new {kdev}",
        "i like the {kdev} in the {room}", "draw a {kdev}", "how do i repair a {kdev}", "who is in the {room}",
        "put flowers in the {room}", "how old is the {kdev}", "is there a {kdev} in the {room}",
        "when was the {kdev} invented", "should i buy a {kdev}", "is a {kdev} expensive", "do we have a {kdev}",
        "tell me more about the {kdev}", "what happens if a {kdev} breaks", "do you like the {kdev}",
        "how do i choose a {kdev}", "what is the {kdev} made of", "describe the {kdev} in the {room}",
        "i hate the {kdev}", "is it safe to touch a {kdev}", "why does a {kdev} make noise",
        "find pictures of a {kdev}", "sell the {kdev}", "can i paint a {kdev}", "who moved the {kdev} in the {room}",
        "can you explain the {kdev} to me", "how warm does a {kdev} get", "who bought the {kdev}",
        "who cleaned the {kdev}", "who took the {kdev} from the {room}", "can i borrow the {kdev}",
        "my friend has a {kdev}", "we talked about the {kdev} in the {room}",
    ),
    "prompts": (
        "what color is the {kdev}", "when did people start to use a {kdev}", "i like the {kdev}",
        "how much power does the {kdev} use", "was the {kdev} expensive", "where is the {room}",
        "what is in the {room}", "play hide and seek in the {room}", "who left the {room}", "i will be in the {room}",
        "set the table in the {room}", "write a letter about the {kdev}", "i dream of a {kdev}",
        "take a nap in the {room}", "should the {room} be {color}", "decorate the {room} in {color}",
        "who repaired the {kdev} in the {room}", "why do people buy a {kdev}", "how heavy is the {kdev}",
        "what does the {kdev} in the {room} do", "where was the {kdev} made", "name a good {kdev}",
        "how long will a {kdev} last", "which {kdev} should i buy for the {room}", "how many people are in the {room}",
        "what smells in the {room}", "who sold us the {kdev}", "my {kdev} is very old", "the {kdev} was a gift",
    ),
    "valid": (
        "can i recycle a {kdev}", "how loud is a {kdev}", "who broke the {kdev} in the {room}",
        "how warm is the {room}", "name three uses of a {kdev}", "i never saw a {kdev} like the one in the {room}",
    ),
    "heldout": (
        "tell me about the history of the {kdev}", "how do i clean the {kdev} in the {room}",
        "explain how a {kdev} works", "do we need a new {kdev} for the {room}", "what happens inside a {kdev}",
        "is {color} a good color for the {room}", "meet me in the {room}", "read me a review of the {kdev}",
        "how many windows does the {room} have",
    ),
}  # fmt: skip
ASKED_ABOUT = (
    "light", "light bulb", "lamp", "ceiling light", "fan", "ceiling fan", "heater", "radiator", "door", "lock",
    "door lock", "tv", "television", "speaker", "stereo", "oven", "alarm", "alarm system",
)  # fmt: skip
