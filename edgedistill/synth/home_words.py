"""Words of the home-command grammar. `home_deal` deals every table but `NOUNS` to the splits, `USUAL_` ones to gold.

Rooms are all words that take "in the"; no room holds a device's name.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.replace("\n", ",").split(",") if word.strip())


# What every home has; learners are always shown these.
USUAL_ROOMS = _words("""kitchen, bedroom, living room, bathroom, garage, hallway, dining room, basement, attic
    guest room, nursery, laundry room, pantry, playroom, gym, closet, cellar, main bedroom, workshop, lounge
    guest bathroom, spare room, kids bedroom""")
USUAL_COLORS = _words("pink, silver, violet, teal, navy, mint, peach, coral, turquoise, lavender")

# What a home calls its own. The tokenizer has each of these words whole, behind a space and behind a quotation mark, so
# that to copy one is to copy, not to spell: "kitchen" is one token in a sentence and two in JSON.
ROOMS = _words("""office, library, den, shed, lab, shop, bar, suite, hall, store, yard, stable, entry, station
    music room, family room, game room, reading room, kids room, storage room, club room, school room, small room
    big room, back room, front room, side room, middle room, home office, back office, front office, main office
    small office, big office, old office, main hall, front hall, back hall, side hall, upper hall, lower hall
    music hall, inner hall, east wing, west wing, north wing, south wing, left wing, right wing, pool house
    farm house, old house, main house, small house, first floor, second floor, third floor, upper floor
    lower floor, top floor, main floor, master suite, family suite, kids suite, music lab, home lab, small lab
    reading area, storage area, family area, kids area, game area, pool area, back shed, old shed, small shed
    wine bar, home bar, pool bar, wine store, back store, front entry, side entry, main entry, back yard
    front yard, side yard, home library, small library, family den, back den""")

COLORS = _words("""red, blue, green, yellow, white, purple, orange, brown, gold, gray, lime, rose, amber, black
    tan, sand, sky, ocean, forest, snow""")

# Names of things a home may have and this one cannot act on. None holds the name of a device that it can.
UNKNOWN = _words("""kettle, coffee maker, dishwasher, washing machine, fridge, microwave, sprinkler, humidifier
    printer, air conditioner, hair dryer, window, gate, computer, car, blender, hot tub, doorbell, shower, camera
    lawn mower, elevator, rice cooker, air purifier, faucet, game console, router, phone, iron, treadmill, freezer
    juicer, mixer, laptop, tablet, scanner, shredder, sewing machine, drill, table saw, leaf blower, chainsaw
    truck, boat, fountain, fog machine, 3d printer, telescope, pressure washer, generator, water softener
    garbage disposal, trash compactor, electric toothbrush, shaver, curling iron, bathtub, toilet, sink, grill
    smoker, deep fryer, popcorn machine, espresso machine, water cooler, metronome, harp, bicycle, drum machine
    keyboard, robot dog, drone, train set, drawer, safe, mailbox, umbrella, suitcase, aquarium pump, bread maker
    waffle iron, food processor, massage chair, exercise bike, electric blanket, pool pump, scooter, slow cooker
    ice maker, motorcycle, typewriter, crib, baby monitor, weather station, smoke detector, scale, rocket, tractor
    forklift, sundial, jukebox, arcade machine, pinball machine, slot machine, cash register, mixing bowl, stapler
    welder, cement mixer, ice cream machine, canoe, loom, microscope, toaster, projector, clothes dryer
    dehumidifier, jacuzzi, soda machine, foot bath, minivan, garage opener, egg cooker, sander, bird feeder
    pasta maker, wheelchair, hedge trimmer, crock pot, label maker, air fryer, wine cooler
    hand dryer, hoverboard, cement truck, go kart, tanning bed, bean grinder, tile cutter, lawn chair
    hot plate, snow blower, bottle warmer, bread slicer, can opener, candle, chest freezer, dough mixer
    electric razor, fax machine, foot massager, garden hose, hair curler, kayak, meat grinder, music box, spin bike
    yogurt maker""")

CITIES = _words("""paris, london, rome, berlin, tokyo, chicago, madrid, vienna, oslo, cairo, sydney, boston, dallas
    lima, delhi, seoul, miami, athens, dublin, prague, nairobi, denver, lisbon, toronto, helsinki, istanbul
    bangkok, zurich, manila, houston, venice, montreal, geneva, osaka, portland, verona, naples""")

PEOPLE = _words("""mom, anna, my boss, john, the plumber, my sister, dad, peter, maria, the doctor, my neighbor
    uncle bob, the school, my wife, tom, grandma, lisa, oscar, the landlord, my aunt, emma, the dentist, my cousin
    grandpa, the mechanic, nina, the electrician, my nephew, my teacher, the gardener, felix, the painter, my niece
    my coach, the baker""")

THINGS = _words("""apples, cheese, batteries, new shoes, pizza, black holes, cats, bicycles, bread, eggs, dinosaurs
    volcanoes, the moon, whales, chess, tea, wine, robots, pirates, trains, castles, honey, gravity, dolphins
    pyramids, rice, socks, candles, soap, poetry, bees, submarines, football, penguins, noodles, glaciers, violins
    bananas, elephants, spaceships, olive oil, penicillin, tulips, kangaroos, toothpaste, pineapples, giraffes
    satellites, maple syrup, vaccines, roses, koalas, shampoo, cucumbers, zebras, comets, peanut butter, fossils
    orchids, pandas, sunscreen""")

TASKS = _words("""buy milk, pay the rent, water the plants, call the bank, take out the trash, feed the cat
    wash the car, send the letter, book a flight, do my homework, renew my passport, pick up the kids
    take my pills, charge my phone, stretch, drink water, buy a present, file my taxes, mow the lawn
    return the books, walk the dog, visit the dentist, iron my shirts, back up my photos, bake a cake
    clean my desk, see the doctor, polish my shoes, print my photos, roast a chicken, fold the laundry
    meet the lawyer, sweep the stairs, scan my letters, boil some eggs""")

# What each device may be called; every split uses all of them, since no learner could guess a name it never met.
NOUNS = {
    "light": _words("light, lights, lamp, ceiling light"),
    "fan": _words("fan, ceiling fan, fans"),
    "heater": _words("heater, heating, radiator"),
    "blinds": _words("blinds, shades, window blinds"),
    "lock": _words("door, doors"),
    "tv": _words("tv, television, telly"),
    "speaker": _words("speaker, speakers, stereo"),
    "oven": _words("oven"),
    "alarm": _words("alarm, alarm system, burglar alarm"),
}
