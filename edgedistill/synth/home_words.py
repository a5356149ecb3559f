"""Words of the home-command grammar, by tier: what gold holds, what prompts add, and what only valid or heldout hold.

Every table is keyed by tier. `prompts` may also use what `gold` holds; `valid` and `heldout` words stand nowhere else.
Rooms are all words that take "in the"; no room holds a device's name.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.replace("\n", ",").split(",") if word.strip())


ROOMS = {
    "gold": _words("""kitchen, bedroom, living room, bathroom, garage, hallway, office, dining room, basement, attic
        guest room, nursery, laundry room, study, library, den, pantry, entryway, playroom, gym, closet, cellar
        main bedroom, upstairs hall, sunroom, workshop, lounge, storage room, music room, family room, utility room
        mudroom, foyer, parlor, game room, craft room, home theater, reading room, spare room, kids room, cloakroom
        dressing room, powder room, wine cellar, server room, tool shed, greenhouse, barn, carport, boathouse
        guest house, sewing room, breakfast room, great room, meeting room, lobby, corridor, stairwell, blue room
        back office, front hall, media room, exercise room, art room, coat room, chapel, nook, penthouse, bakery
        north wing, second bathroom, third bedroom, small bedroom, lower hall, wet room, stable, corner office
        old kitchen, upper floor, green room, summer house, back bedroom, new garage, big office, boiler room
        school room, fish room, waiting room, prayer room, drawing room, bunk room, shower room, tack room, map room
        pool house, break room, bonus room, yoga room, trophy room, first bedroom, dark hall, plain room, turret"""),
    "prompts": _words("""conservatory, back hall, south wing, big bedroom, back kitchen, front bedroom, left hall
        right hall, upper hall, new bathroom, old office, small office, tiny closet, high attic, low cellar, red room
        yellow room, cold room, hot room, bright room, guest bathroom, guest bedroom, dog room, hot cellar, cat room
        school hall, play area, work room, side kitchen, inner hall, outer hall, second office, third floor
        training room, wood shop, paint room, photo room, video room, radio room, dance hall, club room, safe room
        gate house, fruit cellar, shoe closet, water room, family kitchen, home office, garden room, green house
        music hall, sports room, big garage, left wing, right wing, lower floor, middle room, middle floor, old barn
        brick house, stone cellar, upper bedroom, lower bedroom, last room, fire room, power room, test room
        office kitchen, open kitchen, night room, old library, new library, city office, base room, studio, ballroom
        darkroom, west wing, side hall, plant room, small kitchen, old bedroom, narrow office, tower, side room
        supply room, front office"""),
    "valid": _words("""loft, cabin, garden shed, master bedroom, box room, wash room, east wing, computer room
        party room, winter garden, mail room, record room, book room, top floor, long hall, quiet room, gallery
        pool room, summer kitchen, sun deck, linen closet, farm house, staff room, second kitchen, white room, annex
        cottage, north hall, snack room, sewing corner, tea room, south hall, hobby room, third office, main hall
        teen room, rear bedroom, dining area, vault, bird room, ski room, wood shed, glass house, second garage
        upper office, pink room, nap room, short hall, lower kitchen, chess room"""),
    "heldout": _words("""guard room, maid room, card room, drum room, hat closet, ivy cottage, orchid house
        upper cellar, lamb barn, brown room, gray room, second floor, third cellar, book corner, film room, tall tower
        wash house, milk shed, cotton room, ping pong room, sauna, small attic, cigar room, far wing, sick bay"""),
}
COLORS = {
    "gold": _words("""red, blue, green, yellow, white, purple, pink, teal, gold, lavender, crimson, peach, magenta
        navy, rose, beige, indigo, maroon, turquoise, olive, khaki, charcoal, mustard, burgundy, emerald, lilac, mauve
        black, gray, cobalt, salmon, jade"""),
    "prompts": _words("""cyan, lime, coral, mint, ruby, cream, plum, aqua, cherry, lemon, sky, ocean, forest, snow
        sapphire, apricot, fuchsia, chestnut, sand, topaz, honey, wine, rust, smoke, scarlet, bronze, copper, azure
        ivory, tan"""),
    "valid": _words("""orange, violet, silver, brown, amber, pearl, sepia, blush, mahogany, denim, garnet, hazel
        pewter"""),
    "heldout": _words("apple green, ash, cedar, flame, rosewood, steel blue, straw, walnut"),
}
MUSIC = {
    "gold": _words("""jazz, rock, pop, blues, folk, soul, country, metal, disco, swing, gospel, funk, salsa, punk
        trance, mozart, ragtime, hymns, flamenco, hip hop, lullabies, symphonies, mambo, ska, carols, bebop, chopin
        dubstep, anthems, sonatas"""),
    "prompts": _words("""ambient, house, indie, bach, piano, guitar, choir, marches, waltz, tango, drums, love, poems
        rumba, calypso, cello, beethoven, electro, fado, concertos, cabaret, synthwave, samba, grunge, polka, bluegrass
        vivaldi, shanties"""),
    "valid": _words("""reggae, opera, techno, classical, ballads, motown, acoustic, soundtracks, chants, mahler
        serenades, fugues, jungle"""),
    "heldout": _words("big band, haydn, new wave, organ, piano trios, showtunes, trumpets, zydeco"),
}
# Names of things a home may have and this one cannot act on. None holds the name of a device that it can.
UNKNOWN = {
    "gold": _words("""kettle, coffee maker, dishwasher, washing machine, fridge, microwave, sprinkler, humidifier
        printer, air conditioner, hair dryer, window, gate, computer, car, blender, hot tub, doorbell, shower, camera
        lawn mower, elevator, rice cooker, air purifier, faucet, game console, router, phone, iron, treadmill"""),
    "prompts": _words("""freezer, juicer, mixer, laptop, tablet, scanner, shredder, sewing machine, drill, table saw
        leaf blower, chainsaw, truck, boat, fountain, fog machine, 3d printer, telescope, pressure washer, generator
        water softener, garbage disposal, trash compactor, electric toothbrush, shaver, curling iron, bathtub, toilet
        sink, grill, smoker, deep fryer, popcorn machine, espresso machine, water cooler, metronome, harp, bicycle
        drum machine, keyboard, robot dog, drone, train set, drawer, safe, mailbox, umbrella, suitcase, aquarium pump
        bread maker, waffle iron, food processor, massage chair, exercise bike, electric blanket, pool pump, scooter
        slow cooker, ice maker, motorcycle, typewriter, crib, baby monitor, weather station, smoke detector, scale
        rocket, tractor, forklift, sundial, jukebox, arcade machine, pinball machine, slot machine, cash register"""),
    "valid": _words("""mixing bowl, stapler, welder, cement mixer, ice cream machine, canoe, loom, microscope, trapdoor
        toaster, projector, clothes dryer, dehumidifier, jacuzzi, soda machine, foot bath, minivan, garage opener
        egg cooker, sander, bird feeder, ceiling hatch, pasta maker, wheelchair, hedge trimmer, crock pot, label maker
        air fryer, wine cooler, hand dryer, hoverboard, cement truck, go kart, tanning bed, bean grinder, tile cutter
        lawn chair, roof hatch, cat flap, hot plate, snow blower"""),
    "heldout": _words("""bottle warmer, bread slicer, can opener, candle, chest freezer, dough mixer, electric razor
        fax machine, foot massager, garden hose, hair curler, kayak, meat grinder, music box, spin bike
        yogurt maker"""),
}
CITIES = {
    "gold": _words("paris, london, rome, berlin, tokyo, chicago"),
    "prompts": _words("madrid, vienna, oslo, cairo, sydney, boston, dallas, lima, delhi, seoul, miami, athens, dublin"),
    "valid": _words("""prague, nairobi, denver, lisbon, toronto, helsinki, istanbul, bangkok, zurich, manila, houston
        venice, montreal"""),
    "heldout": _words("geneva, osaka, portland, verona, naples"),
}
PEOPLE = {
    "gold": _words("mom, anna, my boss, john, the plumber, my sister"),
    "prompts": _words("dad, peter, maria, the doctor, my neighbor, uncle bob, the school, my wife, tom, grandma, lisa"),
    "valid": _words("""oscar, the landlord, my aunt, emma, the dentist, my cousin, grandpa, the mechanic, nina
        the electrician, my nephew, my teacher, the gardener"""),
    "heldout": _words("felix, the painter, my niece, my coach, the baker"),
}
THINGS = {
    "gold": _words("apples, cheese, batteries, new shoes, pizza, black holes, cats, bicycles"),
    "prompts": _words("""bread, eggs, dinosaurs, volcanoes, the moon, whales, chess, tea, wine, robots, pirates, trains
        castles, honey, gravity, dolphins, pyramids, rice, socks, candles, soap, poetry, bees, submarines, football"""),
    "valid": _words("""penguins, noodles, glaciers, violins, bananas, elephants, spaceships, olive oil, penicillin
        tulips, kangaroos, toothpaste, pineapples, giraffes, satellites, maple syrup, vaccines, roses, koalas
        shampoo"""),
    "heldout": _words("cucumbers, zebras, comets, peanut butter, fossils, orchids, pandas, sunscreen"),
}
TASKS = {
    "gold": _words("buy milk, pay the rent, water the plants, call the bank"),
    "prompts": _words("""take out the trash, feed the cat, wash the car, send the letter, book a flight, do my homework
        renew my passport, pick up the kids, take my pills, charge my phone, stretch, drink water, buy a present"""),
    "valid": _words("""file my taxes, mow the lawn, return the books, walk the dog, visit the dentist, iron my shirts
        back up my photos, bake a cake, clean my desk, see the doctor, polish my shoes, print my photos
        roast a chicken"""),
    "heldout": _words("fold the laundry, meet the lawyer, sweep the stairs, scan my letters, boil some eggs"),
}

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
