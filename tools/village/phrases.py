"""The grammar of the training text: rules, each with its alternatives.

A ``{name}`` in an alternative stands for a fact of the situation, or else for another rule, so a
few hundred lines give millions of sentences. The facts are those of ``Facts`` in ``corpus.py``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from string import Formatter


def _rules(text: str) -> dict[str, tuple[str, ...]]:
    """Rules of lines: ``= name`` begins a rule, each further line is an alternative."""
    found: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("= "):
            lines = found.setdefault(line[2:], [])
        else:
            lines.append(line)
    return {name: tuple(lines) for name, lines in found.items()}


RULES = _rules("""
= greeting
Good {part}, {other}.
Hello, {other}.
{other}, how good to see you.
Ah, {other}.
Good day, {other}.
There you are, {other}.
Welcome, {other}.
{other}! I was just thinking of you.

= weather_sun
What a bright {part} it is.
The sun is warm on the {stones}.
The sky is clear, and the {birds} are singing.
With such a sun the {crops} will be ripe soon.
It is too fine a day to stay inside.
The light on the water is lovely today.

= weather_rain
The rain will not stop before the evening.
My {clothes} are wet from all this rain.
The roads are deep in mud after the rain.
Rain again, but the {crops} need it.
The river is rising with this rain.
Come under the roof, you are soaked.

= weather_wind
The wind took my {clothes} this {part}.
Hold on to your hat in this wind.
The wind comes from the {side} today, and it is sharp.
With this wind no boat will leave the pier.
The wind rattles every door in the village.
I heard the wind in the chimney all night.

= weather_fog
I could hardly find the {place} in this fog.
The fog is so thick that I heard you before I saw you.
The fog hides the whole river.
In such a fog even the {birds} are silent.
The fog will lift before noon, I think.
Everything is grey and quiet in the fog.

= weather_snow
The snow lies deep on the road to the {place2}.
My hands are cold from the snow.
The children are happy about the snow.
Snow on the roof and a fire inside, that is how I like it.
We need more wood if it snows like this.
The snow makes the whole village quiet.

= weather_clouds
It is a grey {part}, but it is dry.
The clouds are low, and it will rain by night.
I wish the clouds would go.
A cloudy day is good for work.
The sky cannot decide what to do today.
There is no sun today, but I do not mind.

= say_weather
{weather_line}
{weather_line} How is it at the {place2}?
{weather_line} I hope it is better tomorrow.
{weather_line} Do you need anything from the {place2}?
= reply_weather
Yes, and {tomorrow} it may be {better}.
I do not mind the {weather_noun}. I have to {task}.
I know. That is why I came to the {place} so early.
My {kin} says that it will stay like this for {days}.
You are right. Let us stay here until it is over.
The {weather_noun} is good for the {crops}, but not for my {body}.
As long as I can {task}, I am content.
I would rather be at home by the fire.
= close_weather
Then I will wait here a little longer.
Well, I had better go before it gets dark.
{days_cap} is a long time. Take care of yourself, {other}.
Then let us hope for the best, {other}.
I will bring you some {food} if it goes on like this.
Good luck with your work, {other}.

= say_gossip
Have you heard? {who} went to the {gplace} to {gtask}.
They say that {who} is at the {gplace} to {gtask}.
Is it true that {who} had to {gtask}?
{who} went to the {gplace}, and nobody knows why.
I heard that {who} wants to {gtask} all day.
Do you know what {who} is doing at the {gplace}?
So {who} went to {gtask}. I was {surprised} to hear it.
= reply_gossip
{who}? I saw {who} at the {gplace} {lately}.
That is no news to me. {who} likes to {gtask}.
I did not know that. I will ask {who} {tomorrow}.
{who} should not {gtask} alone. It is hard work.
Let {who} be. There are worse things than to {gtask}.
Yes, and {who2} went along to help.
I do not believe it. {who} was with {who2} {lately}.
If {who} can {gtask}, then I can do it too.
Good for {who}. Somebody has to {gtask}.
= close_gossip
Then I will not say a word about it to {who}.
You always know more than I do, {other}.
Well, we will see when {who} comes back.
I will go to the {gplace} and see for myself.
You may be right about {who}.
Poor {who}. I will bring some {food}.
I thought as much.

= say_work
I still have to {task} at the {place2}.
All this {part} I had to {task}, and I am {tired}.
First I want to {task}, and then I will rest.
It takes me {days} to {task}, but I like it.
My {tool} broke when I wanted to {task}.
Nobody helps me to {task}. Would you?
I was at the {place2} to {task}. And you?
= reply_work
I will help you to {task} when I am done here.
You work too much. Sit down and have some {food}.
Take my {tool}. I do not need it before {tomorrow}.
Ask {who2}. Nobody is better at it.
I have to {task2} myself, so I cannot come.
Then you should begin early. To {task} is hard work.
My {kin} can help you to {task} {tomorrow}.
I came to {task2}, and then I am going home.
Leave it for {tomorrow}. The {weather_noun} makes you slow.
= close_work
That is kind of you, {other}. I will not forget it.
Thank you, {other}. I owe you a {gift}.
Then I will ask {who2}. Good day to you.
{tomorrow_cap}, then. I will be at the {place2}.
You are right. A short rest will do me good.
I will come for it before the evening.
Do not worry. I can do it alone.

= say_invite
Come to the {place2} with me to {task}.
Will you be at the {place2} {tomorrow}? We want to {task}.
{who2} and I are going to the {place2}. Come along.
There is some {food} at the {place2} tonight. Will you come?
Shall we {task} together {tomorrow}?
Let us meet at the {place2} when the bell rings.
= reply_invite
I would like that. I will be at the {place2} {tomorrow}.
Gladly, but first I have to {task2}.
Not today, {other}. I am {tired}.
Only if {who2} comes too.
Yes. I will bring some {food} and my {kin}.
I cannot. I promised {who2} to {task2}.
If the {weather_noun} does not stop me, I will come.
What a good idea. Nobody should {task} alone.
= close_invite
Good. Then we will see each other at the {place2}.
What a pity. Another time, then.
I will tell {who2} to wait for you.
Do not be late, {other}.
I am glad. Bring your {tool} if you can.
Then I will go alone.

= say_trade
How is the work of a {other_trade} these days?
A {other_trade} like you must know where to find a good {tool}.
What do you ask for {amount} of {goods}?
I need {amount} of {goods} before {tomorrow}.
Do you want some {goods}? I have too much.
Somebody at the {place2} pays a good price for {goods}.
= reply_trade
For you, {other}, {amount} of {goods} costs {coins}.
I have no {goods} left. Try the {place2}.
A {my_trade} never has enough time, but I do not complain.
It is a good year for a {my_trade}.
Come to the {place2} {tomorrow}, and I will see what I have.
I will trade it for some {food}.
That is too much, but I will think about it.
Take it. You helped me to {task2} {lately}.
= close_trade
That is a fair price. I will take it.
{coins_cap}? That is too much for me.
Thank you. I will send my {kin} to fetch it.
Then we agree, {other}.
I will ask {who2} before I decide.
You have a good heart, {other}.

= say_feeling
I slept badly, and I am {tired}.
I have been {mood} since {who2} left.
Today I am {mood}. I do not know why.
I miss my {kin}, who is far away.
You look {mood}, {other}. What is it?
I dreamed of the {place2}, and of a big {animal}.
= reply_feeling
Sit down with me and tell me about it.
It will be better {tomorrow}, {other}. It always is.
I was {mood} too, {lately}. Then I went to the {place2}.
Eat some {food}, and you will feel better.
It is nothing. I have to {task}, that is all.
It is the {weather_noun}. It makes all of us {mood}.
My {kin} always says: who can {task} is never sad.
= close_feeling
Thank you, {other}. That helps.
You are a true friend, {other}.
Perhaps you are right.
Let us talk of something else.
I will try that.
Then I will go to the {place2} and think.

= diary
Today I went to the {place} to {task}. {feeling_line}
I met {other} at the {place}. We talked about {topic_noun}.
{other} told me that {who} went to the {gplace} to {gtask}.
It was a day of {weather_noun}. I wanted to {task}, and it is done.
I am {tired}, but I am glad that {other} came to see me.
{tomorrow_cap} I want to {task2} at the {place2}.
I had {food} with {other}, and later we went to the {place2}.
My {kin} asked me to {task2}, so I will get up early.
I saw a {animal} near the {place2}. {feeling_line}
{who2} gave me {amount} of {goods}. I must not forget to say thank you.
= feeling_line
I was {mood} all day.
It made me {mood}.
I am {tired} now.
I will sleep well tonight.
I should do it more often.
Nobody was there but me.
It was hard work.

= story
There was once a {my_trade} who wanted to {task}. {story_turn} {story_end}
Long ago a {animal} lived near the {place}. {story_turn} {story_end}
When {who} was a child, {who} was afraid of the {place2}. {story_turn} {story_end}
In the {weather_noun} {who} and {who2} went to the {place} to {task}. {story_turn} {story_end}
Every {part} {who} went to the {place} with a {tool}. {story_turn} {story_end}
= story_turn
One day {who2} came along and asked for {food}.
But the {weather_noun} was so strong that nobody could {task}.
Then a {animal} ran over the road and took the {gift}.
{who2} said: You will never {gtask} like that.
At the {gplace} there was {amount} of {goods}, and nobody knew whose it was.
After {days} there was no {food} left in the house.
= story_end
From then on they were friends.
So {who2} learned to {task}, and was {mood} no more.
And that is why nobody goes to the {gplace} at night.
They went home and talked about it for {days}.
In the end {who} gave the {gift} to {who2}.
But {who2} only laughed and went back to the {place2}.
The whole village came to the {place} to {gtask}.

= better
better
worse
warm
cold
dry
clear
quiet
= tomorrow
tomorrow
in the morning
tonight
on Sunday
next week
after the market
= tomorrow_cap
Tomorrow
In the morning
On Sunday
Next week
= lately
yesterday
last night
this morning
on Monday
an hour ago
last week
= days
two days
three days
a week
half the night
an hour
the whole day
= days_cap
Two days
A week
Half the night
The whole day
= mood
happy
sad
angry
afraid
lonely
cheerful
restless
proud
worried
calm
hopeful
= tired
tired
hungry
cold
thirsty
glad
ready
late
= surprised
surprised
glad
sorry
angry
not surprised
= food
bread
soup
cider
cheese
honey cake
apples
fresh milk
beans
fish
tea
plums
warm pie
= goods
flour
honey
wool
salt
firewood
fish
apples
candles
rope
onions
nails
butter
hay
herbs
paper
= amount
a sack
a basket
a cart
a jar
a bit
a box
half a barrel
= coins
two coins
three coins
five coins
a silver coin
one coin
ten coins
= coins_cap
Two coins
Five coins
Ten coins
A silver coin
= tool
hammer
needle
knife
ladder
basket
lamp
bucket
rope
brush
wagon
shovel
saw
axe
= gift
cup of cider
loaf of bread
jar of honey
basket of apples
song
good word
pair of gloves
= animal
fox
dog
goat
white horse
crow
cat
deer
hare
wolf
grey goose
= birds
birds
geese
crows
larks
= stones
stones
roofs
fields
steps
= crops
beans
apples
wheat
roses
onions
fields
= clothes
coat
shirt
hat
boots
gloves
= body
back
hands
knees
old bones
feet
= side
north
east
south
west
sea
= topic_noun
the {weather_noun}
{who}
the price of {goods}
the road to the {place2}
old times
{food}
the {animal} that {who2} saw
""")


def expand(text: str, facts: Mapping[str, str], draw: random.Random) -> str:
    """``text`` with every ``{name}`` replaced, by its fact or by an alternative of its rule. Raises
    ``KeyError`` for a name that is neither."""
    pieces = []
    for literal, name, _, _ in Formatter().parse(text):
        pieces.append(literal)
        if name is not None:
            fact = facts.get(name)
            pieces.append(fact or expand(draw.choice(RULES[name]), facts, draw))
    return "".join(pieces)
