"""Sentences of our own, drawn from small grammars: what the voices of a corpus say.

A grammar maps a symbol to its choices; `{symbol}` in one is replaced by a draw. All begin at `start`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

Grammar = Mapping[str, Sequence[str]]
_SLOT = re.compile(r"\{(\w+)\}")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split("|")]


_ENGLISH: Grammar = {
    "start": _listed(
        "{tell} | {tell} | {tell} {tell} | {ask} | {ask} {tell} | {say} | {say} {tell} | {say} {say} | {number} | "
        "{number} {say} | {rich} | {rich} | {rich} {ask} | {wish} {say} | {tell} {wish}"
    ),
    "tell": _listed(
        "{Who} {did} {what} {where}. | {Who} {did} {what} {when}. | {When}, {who} {did} {what}. | "
        "{Who} never {did} {what} without {what}. | {Who} and {who} {did} {what}. | "
        "{Who} {did} {what}, but {who} {did} {what}. | {Who} {did} {what} because {reason}. | "
        "{Where}, there was {what} beside {what}. | If {reason}, {who} will wait {where}. | "
        "Although {reason}, {who} {did} {what}. | {Who}, who {did} {what}, is {how} now. | "
        "It was {how} {where}, and {reason}."
    ),
    "ask": _listed(
        "Who {did} {what} {where}? | Why is {what} so {how}? | Do you think that {reason}? | "
        "Have you ever been {where} {when}? | Would you rather have {what} or {what}? | Is {what} {how}, or is it {how}? | "
        "When did {who} say that {reason}? | How far is it from here to {place}? | Could you show me {what}, please? | "
        "What makes {what} so {how}? | Which of you {did} {what}? | Aren't you {how} after all that? | "
        "Where on earth did {who} find {what}?"
    ),
    "say": _listed(
        "Hello, it's good to see you again. | Oh, I see what you mean. | Well, maybe we should move on. | "
        "Sorry, could you say that once more? | Yes, of course, why not? | No, I don't believe so. | "
        "Thank you very much for your help. | Give me a moment, please. | Wow, that is {how}! | Hm, let me think about it. | "
        "You're welcome, my friend. | Can everybody hear me now? | Let's have a look at {what}. | I'm {how} about it. | "
        "Please don't forget {what}. | Just put {what} over there. | Maybe I'll phone {who} tomorrow. | "
        "That's fine by me. | What a pity! | We'll see about that. | Good morning, everyone, and welcome. | "
        "Bye for now, and have a pleasant evening. | Right, shall we begin? | I've no idea, to be honest. | "
        "Come on, help me move this. | Both of us would love to. | Mum, may I have some more? | "
        "Keep your voice down, will you? | I beg your pardon? | Okay, five more minutes. | Look out behind you!"
    ),
    "number": _listed(
        "My number is {d} {d} {d}, {d} {d}, {d} {d}. | It costs {n} pounds and {n} pence. | "
        "The train leaves at {h} {m} from platform {d}. | There were {n} thousand {n} people {where}. | "
        "Turn left after {n} metres, then take the {nth} street. | In nineteen {n}, {who} {did} {what}. | "
        "{d} times {d} is not {n}. | Between {n} and {n} per cent of them came by bus. | "
        "Room {d} {d} {d} is on the {nth} floor."
    ),
    "rich": _listed(
        "Five fat {animals} fought for {what}. | Bob and Pam both brought {bm}, {bm} and {bm}. | "
        "Every Wednesday we went for a walk {where} with {who}. | Who would choose blue shoes for a wedding? | "
        "Move the purple map above the open {bm}. | She always chews fresh cherries in church. | "
        "The judge enjoyed orange juice and ginger. | Father bathed the other brother with a soft cloth. | "
        "Both mothers breathed the thin northern air. | The boy's noisy toys annoyed Roy. | "
        "How now can a brown cow go round our house? | Put the good book back by the wooden bush. | "
        "We saw four small doors along the water. | Cool rules for new students are few. | "
        "My wife drives five white vans at night. | Ned said ten men went to bed. | "
        "Aunt Ann asked Max to pack the black bags. | His little sister Jill is ill and still in the kitchen. | "
        "Keen teachers read these three green leaflets. | Rural roads are rarely really wide. | "
        "A usual measure of pleasure is leisure. | Young yachtsmen yell at yellow yaks. | "
        "The king was singing a long song to the young duke. | Big green grapes grow again in August. | "
        "Vivid violets cover the river valley. | Zoe's cousins use these roses as prizes. | "
        "Perhaps Peter popped up a paper {bm}. | Most summer mornings, my mum makes marmalade {bm}. | "
        "Few of the effects are ever fully verified. | Above the harbour, heavy clouds hung over the hills. | "
        "The early bird heard the third nurse first. | Don't go home alone over the frozen ocean. | "
        "Try to buy a fine tie in July. | They may play the same game in the rain today. | "
        "A proper copper coffee pot is not a cup. | Mr Wembley's warm welcome was a wonderful moment."
    ),
    "wish": _listed(
        "I wish that {reason}. | I would like to {do} {where}. | We hope to {do} before {reason}. | "
        "Remember to {do} when {reason}. | It would be {how} to {do} {when}. | Let me {do} first. | "
        "You should {do}, and then {do}. | I'm going to {do} until {reason}."
    ),
    "who": _listed(
        "my neighbour | the old fisherman | our new teacher | a young pilot | the baker's wife | Barbara | Philip | "
        "everybody | the woman from Peru | his elder brother | Doctor Foster | the mayor | some visitors | you | we | they | "
        "Aunt Martha | a famous painter | the bus driver | both boys | the shy engineer | Joshua | Mrs Thompson | my uncle"
    ),
    "Who": _listed(
        "My neighbour | The old fisherman | Our new teacher | A young pilot | The baker's wife | Barbara | Philip | "
        "Everybody | The woman from Peru | His elder brother | Doctor Foster | The mayor | Some visitors | You | We | They | "
        "Aunt Martha | A famous painter | The bus driver | Both boys | The shy engineer | Joshua | Mrs Thompson | My uncle"
    ),
    "did": _listed(
        "found | bought | moved | painted | repaired | borrowed | photographed | described | dropped | liked | "
        "brought | forgot | watched | remembered | sold | measured | wrapped up | threw away | asked for | gave up | "
        "looked for | improved | opened | finished | chose | knew | imagined | showed me | wanted | built"
    ),
    "what": _listed(
        "a broken umbrella | the blue bicycle | fresh bread and butter | the wooden bridge | a box of chocolates | "
        "the first chapter | an enormous map | the morning paper | my father's watch | a very good recipe | "
        "that amazing view | the village museum | half a lemon | seven purple envelopes | the photograph album | "
        "a heavy iron door | something beautiful | the weather report | a pair of leather gloves | the missing key | "
        "a cheap computer | the whole orchestra | two cups of coffee | our favourite film | a bottle of apple juice | "
        "the orange sofa | fish and chips | a thousand questions | the speech | their garden fence | a warm woollen jumper | "
        "the usual route | a television | wild mushrooms | the birthday cake | an empty room"
    ),
    "where": _listed(
        "in the harbour | behind the theatre | on the bus | at the pharmacy | under the apple tree | by the river | "
        "in front of the hotel | near the old mill | in Birmingham | on the balcony | above the shop | at the airport | "
        "in the middle of the park | on a farm in Wales | at my mother's house | beyond the mountains | in the office | "
        "at the edge of the forest | on the beach | around the corner"
    ),
    "Where": _listed(
        "In the harbour | Behind the theatre | On the bus | At the pharmacy | Under the apple tree | By the river | "
        "In front of the hotel | Near the old mill | Above the shop | In the middle of the park | On the balcony"
    ),
    "place": _listed("the harbour | the museum | Oxford | the bus stop | Vienna | the beach | the moon | your village"),
    "when": _listed(
        "yesterday | this morning | in February | just before midnight | on Thursday | every other week | last winter | "
        "after breakfast | for the very first time | on her birthday | at half past four | during the holidays"
    ),
    "When": _listed(
        "Yesterday | This morning | In February | Just before midnight | On Thursday | Every other week | Last winter | "
        "After breakfast | For the very first time | At half past four | During the holidays | Every now and then"
    ),
    "reason": _listed(
        "the rain stopped | nobody was at home | the shop was closed | the moon was bright | we had enough money | "
        "the road was too narrow | it would be cheaper by boat | the baby was asleep | the phone kept ringing | "
        "my voice was gone | the birds fly south | there is no more time | everyone prefers the other one | "
        "the film was awful | the bread was warm | they were both worried | you live above the bakery | "
        "the wind blew from the west | our mother knows the way | the children were playing"
    ),
    "how": _listed(
        "wonderful | surprisingly quiet | a bit too warm | very important | quite beautiful | unusually busy | cheap | "
        "heavy | impossible | famous | rather thin | much better | bitter | smooth | perfectly normal | fair | awkward | "
        "young | obvious | curious | ashamed | huge | marvellous | rough | simple | unfamiliar"
    ),
    "do": _listed(
        "open the window | feed the birds | move the table | buy some paper | phone the plumber | make a big breakfast | "
        "write a poem | visit my family | play the piano | wash the woollen things | pay the bill | watch the match | "
        "improve my French | wait for the others | choose a present | go for a swim | peel the potatoes | climb that hill"
    ),
    "animals": _listed("foxes | puppies | beavers | wolves | bears | frogs | pigeons | mice | buffaloes"),
    "bm": _listed("balloon | banana | lamp | bamboo | pepper | number | member | plum | drum | map | puppet | magnet | beam"),
    "d": _listed("zero | one | two | three | four | five | six | seven | eight | nine"),
    "n": _listed(
        "twelve | fifteen | sixteen | twenty-one | thirty-four | forty-five | fifty-six | sixty-seven | seventy-eight | "
        "eighty-nine | ninety | eleven | thirteen | eighteen | one hundred | forty"
    ),
    "h": _listed("four | five | six | seven | eight | nine | eleven"),
    "m": _listed("oh five | fifteen | twenty | thirty-two | forty-seven | fifty-five"),
    "nth": _listed("first | second | third | fourth | fifth | eleventh | twelfth"),
}  # fmt: skip
_GERMAN: Grammar = {
    "start": _listed(
        "{Wer} {tut} {was} {wo}. | {Wann} {tut} {wer} {was}. | Warum {tut} {wer} {was}? | {Wer} {tut} {was}, und {wer} {tut} {was}. | "
        "{ruf} {Wer} {tut} {was}. | Ich möchte {zahl} {dinge} kaufen. | {ruf} Wo ist {was}?"
    ),
    "Wer": _listed(
        "Meine Mutter | Der junge Bäcker | Unser Nachbar | Frau Müller | Das Mädchen | Ein Freund aus Köln"
    ),
    "wer": _listed(
        "meine Mutter | der junge Bäcker | unser Nachbar | Frau Müller | das Mädchen | ein Freund aus Köln"
    ),
    "tut": _listed(
        "sucht | findet | malt | bringt | kauft | vergisst | öffnet | verkauft | möchte | bewundert"
    ),
    "was": _listed(
        "das blaue Buch | eine schöne Blume | die neue Brücke | fünf Äpfel | das große Haus | ein warmes Brot | "
        "die böse Überraschung | den Schlüssel | etwas Wunderbares | frische Milch"
    ),
    "wo": _listed(
        "am Bahnhof | im Garten | vor dem Theater | hinter der Mühle | in München | auf dem Berg | zu Hause"
    ),
    "Wann": _listed(
        "Heute | Gestern Abend | Am Mittwoch | Im Frühling | Vielleicht | Um halb vier | Jeden Morgen"
    ),
    "ruf": _listed(
        "Guten Morgen! | Ach so. | Vielen Dank. | Wie bitte? | Na gut. | Entschuldigung. | Bis morgen."
    ),
    "zahl": _listed("zwei | fünf | zwölf | siebzehn | zwanzig | hundert"),
    "dinge": _listed("Bücher | Brötchen | Hemden | Blumen | Fische | Knöpfe"),
}
_FRENCH: Grammar = {
    "start": _listed(
        "{Qui} {fait} {quoi} {ou}. | {Quand}, {qui} {fait} {quoi}. | Pourquoi est-ce que {qui} {fait} {quoi}? | "
        "{Qui} {fait} {quoi}, mais {qui} {fait} {quoi}. | {cri} {Qui} {fait} {quoi}. | Je voudrais {nombre} {choses}. | "
        "{cri} Où est {quoi}?"
    ),
    "Qui": _listed(
        "Ma mère | Le vieux pêcheur | Notre voisin | Madame Dubois | La petite fille | Un bon ami | Monsieur Lefèvre"
    ),
    "qui": _listed(
        "ma mère | le vieux pêcheur | notre voisin | madame Dubois | la petite fille | un bon ami"
    ),
    "fait": _listed(
        "cherche | trouve | peint | apporte | achète | oublie | ouvre | vend | regarde | préfère"
    ),
    "quoi": _listed(
        "le livre bleu | une belle fleur | le nouveau pont | cinq pommes | la grande maison | un pain chaud | "
        "le bon vin blanc | la feuille jaune | quelque chose de beau | du beurre frais"
    ),
    "ou": _listed(
        "à la gare | dans le jardin | devant le théâtre | au bord du lac | à Bordeaux | sur la montagne | chez moi"
    ),
    "Quand": _listed(
        "Aujourd'hui | Hier soir | Mercredi | Au printemps | Peut-être | Chaque matin | À quatre heures"
    ),
    "cri": _listed("Bonjour! | Ah bon. | Merci beaucoup. | Pardon? | Très bien. | Au revoir. | Bien sûr."),
    "nombre": _listed("deux | cinq | douze | dix-sept | vingt | cent"),
    "choses": _listed("livres | gâteaux | chemises | fleurs | poissons | boutons"),
}
_SPANISH: Grammar = {
    "start": _listed(
        "{Quien} {hace} {que} {donde}. | {Cuando}, {quien} {hace} {que}. | ¿Por qué {hace} {quien} {que}? | "
        "{Quien} {hace} {que}, pero {quien} {hace} {que}. | {grito} {Quien} {hace} {que}. | Quiero comprar {num} {cosas}. | "
        "{grito} ¿Dónde está {que}?"
    ),
    "Quien": _listed(
        "Mi madre | El viejo pescador | Nuestro vecino | La señora Pérez | La muchacha | Un buen amigo"
    ),
    "quien": _listed(
        "mi madre | el viejo pescador | nuestro vecino | la señora Pérez | la muchacha | un buen amigo"
    ),
    "hace": _listed("busca | encuentra | pinta | trae | compra | olvida | abre | vende | mira | prefiere"),
    "que": _listed(
        "el libro azul | una flor bonita | el puente nuevo | cinco manzanas | la casa grande | un pan caliente | "
        "la guitarra vieja | el buen vino | algo maravilloso | leche fresca"
    ),
    "donde": _listed(
        "en la estación | en el jardín | delante del teatro | junto al río | en Bogotá | en la montaña | en casa"
    ),
    "Cuando": _listed(
        "Hoy | Ayer por la noche | El miércoles | En primavera | Quizás | Cada mañana | A las cuatro"
    ),
    "grito": _listed(
        "¡Buenos días! | Ya veo. | Muchas gracias. | ¿Perdón? | Muy bien. | Hasta mañana. | Por supuesto."
    ),
    "num": _listed("dos | cinco | doce | diecisiete | veinte | cien"),
    "cosas": _listed("libros | pasteles | camisas | flores | peces | botones"),
}
_ITALIAN: Grammar = {
    "start": _listed(
        "{Chi} {fa} {cosa} {dove}. | {Quando}, {chi} {fa} {cosa}. | Perché {chi} {fa} {cosa}? | "
        "{Chi} {fa} {cosa}, ma {chi} {fa} {cosa}. | {grido} {Chi} {fa} {cosa}. | Vorrei comprare {num} {cose}. | "
        "{grido} Dov'è {cosa}?"
    ),
    "Chi": _listed(
        "Mia madre | Il vecchio pescatore | Il nostro vicino | La signora Bianchi | La ragazza | Un buon amico"
    ),
    "chi": _listed(
        "mia madre | il vecchio pescatore | il nostro vicino | la signora Bianchi | la ragazza | un buon amico"
    ),
    "fa": _listed(
        "cerca | trova | dipinge | porta | compra | dimentica | apre | vende | guarda | preferisce"
    ),
    "cosa": _listed(
        "il libro azzurro | un bel fiore | il ponte nuovo | cinque mele | la casa grande | un pane caldo | "
        "la chitarra vecchia | il buon vino | qualcosa di bello | latte fresco"
    ),
    "dove": _listed(
        "alla stazione | in giardino | davanti al teatro | lungo il fiume | a Bologna | in montagna | a casa"
    ),
    "Quando": _listed("Oggi | Ieri sera | Mercoledì | In primavera | Forse | Ogni mattina | Alle quattro"),
    "grido": _listed(
        "Buongiorno! | Ho capito. | Grazie mille. | Prego? | Va bene. | A domani. | Certamente."
    ),
    "num": _listed("due | cinque | dodici | diciassette | venti | cento"),
    "cose": _listed("libri | dolci | camicie | fiori | pesci | bottoni"),
}
_RUSSIAN: Grammar = {
    "start": _listed(
        "{Who} {does} {what} {where}. | {When} {who} {does} {what}. | Почему {who} {does} {what}? | "
        "{Who} {does} {what}, а {who} {does} {what}. | {cry} {Who} {does} {what}. | {cry} Где находится музей?"
    ),
    "Who": _listed("Моя мама | Старый рыбак | Наш сосед | Новая учительница | Девочка | Мой лучший друг"),
    "who": _listed("моя мама | старый рыбак | наш сосед | новая учительница | девочка | мой лучший друг"),
    "does": _listed("ищет | видит | рисует | приносит | покупает | забывает | открывает | продаёт | любит"),
    "what": _listed(
        "белый хлеб | большой дом | новый мост | пять яблок | тёплое молоко | музыку | картину | что-то удивительное | "
        "бабушкин пирог | голубой автобус"
    ),
    "where": _listed("на вокзале | в саду | у реки | перед театром | в Москве | на горе | дома"),
    "When": _listed("Сегодня | Вчера вечером | В среду | Весной | Может быть, | Каждое утро"),
    "cry": _listed(
        "Доброе утро! | Понятно. | Большое спасибо. | Простите? | Хорошо. | До завтра. | Конечно."
    ),
}
_GRAMMARS: Mapping[str, Grammar] = {
    "en": _ENGLISH,
    "de": _GERMAN,
    "fr": _FRENCH,
    "es": _SPANISH,
    "it": _ITALIAN,
    "ru": _RUSSIAN,
}
LANGUAGES = tuple(_GRAMMARS)


def draw_text(language: str, rng: np.random.Generator) -> str:
    """Returns a random text of one to three sentences.

    Args:
        language: BCP 47; its region does not matter.
        rng: where the draw comes from.

    Raises:
        KeyError: there is no grammar of the language.
    """
    grammar = _GRAMMARS[language.partition("-")[0]]
    text = "{start}"
    while slot := _SLOT.search(text):
        choices = grammar[slot[1]]
        text = text[: slot.start()] + choices[int(rng.integers(len(choices)))] + text[slot.end() :]
    return text[:1].upper() + text[1:]
