"""The words around the numbers: how a tutor opens, confirms, corrects and ends.

`{e}` is an expression, `{c}` the answer that a student offers, `{f}` a fact, `{r}` a result. The first of each row are
for all grades; the rest use longer words, for grades 6-12.
"""

from collections.abc import Mapping
from types import MappingProxyType

from curriculum.mathematics.exercise import Topic
from mesh.tutoring.profile import LearningStyle

# Sentences that open an explanation; they judge nothing.
OPENINGS = (
    "Let's do it step by step.",
    "We can do this in small steps.",
    "Here is a way to do it.",
    "Let's work it out together.",
    "Here is how it goes.",
    "Good question.",
    "Watch how it works.",
    "Let's begin with what we know.",
    "Here is a plan with clear steps.",
    "The idea is to break it into smaller steps.",
    "We can use facts that you already know.",
    "Each step below uses only one idea.",
)
RESULTS = (
    "So {r}.",
    "That means {r}.",
    "So now we know that {r}.",
    "In the end, {r}.",
    "This shows that {r}.",
    "And so {r}.",
    "Therefore {r}.",
    "We conclude that {r}.",
)
EARLY_RESULTS = 6
EARLY_OPENINGS = 8

# Questions that end an explanation, for those who need to check that they follow.
QUESTIONS = (
    "Which step can you tell me in your own words?",
    "Can you tell me what we did first?",
    "Do you want to try one like it?",
    "What do you think we did first?",
    "Which step would you like to see again?",
    "Can you make up one more like it?",
)
REASSURANCES = (
    "Take your time.",
    "There is no rush.",
    "You can do this.",
    "It is okay to go slowly.",
    "One small step at a time is fine.",
)
# What says that the steps are over.
ENDINGS = (
    "That was the last step.",
    "Now you are done.",
    "After this step you are done.",
    "The work is done here.",
)

CONFIRMS = (
    "Yes, {f}.",
    "Yes, that is right: {f}.",
    "Right, {f}.",
    "That is right, {f}.",
    "Correct: {f}.",
    "Yes! You found that {f}.",
    "You got it: {f}.",
    "Exactly, {f}.",
    "Your answer is right: {f}.",
    "Yes, {c} is right for {e}.",
    "That is correct, because {f}.",
    "Well done, {f}.",
    "Yes, it is {c}.",
    "You are right: {f}.",
    "Right! The answer to {e} is {c}.",
    "Good work, {f}.",
    "Yes, {c} is the answer to {e}.",
    "Spot on: {f}.",
    "You are right, it is {c}.",
    "Nice work: {f}.",
    "Yes, your work is right: {f}.",
    "That is exactly right: {f}.",
    "Yes, I get the same value: {f}.",
    "Correct, the value of {e} is {c}.",
    "Your result is correct: {f}.",
    "That is correct: {e} comes to {c}.",
    "Yes, a calculation confirms that {f}.",
    "Right, and the exact value is {c}.",
    "Correct: {c} is the exact value of {e}.",
    "Accurate work: {f}.",
)
EARLY_CONFIRMS = 20
# After the thought; questions alone, so that they also serve those who need one.
NEXT_AFTER_RIGHT = (
    "How did you find it?",
    "Which step did you do first?",
    "Can you tell how you did it?",
    "Want to try one with bigger numbers?",
    "Can you think of one more way?",
    "What would you try next?",
    "How would you explain it to a friend?",
    "Can you make a new one like it?",
)

CORRECTS = (
    "Not quite: {e} is not {c}.",
    "{c} is not right for {e}, but you can find it.",
    "{e} is not {c}, so it is not right yet.",
    "Good try, but {c} is not the answer to {e}.",
    "I see your thinking, but {c} is not right.",
    "Thanks for trying, but {e} is not quite {c}.",
    "No, {c} is not right, and that is okay.",
    "That is not right yet: {e} is not {c}.",
    "{c} is not the answer, but we can get there.",
    "Hmm, {c} does not fit {e}.",
    "It is not {c}, so let's look again.",
    "{c} is not quite what {e} makes.",
    "Not yet: {c} does not match {e}.",
    "A small slip: {e} is not {c}.",
    "Thank you for showing it; {c} is not right yet.",
    "{c} is a fair try, but it is not right.",
    "This one is wrong, but you can fix it: {e} is not {c}.",
    "Let's look again, because {e} is not {c}.",
    "{e} does not match {c}, and we can fix that.",
    "Not quite, {c} is not the answer here.",
    "{c} is not correct for {e}, and one step will help.",
    "That result is not correct yet: {e} does not equal {c}.",
    "I worked it out, and {e} is not {c}, so that is not correct.",
    "The value {c} is not correct, but the mistake can be found.",
    "There is a slip somewhere, because {e} is not {c}.",
    "Not quite: {c} is not the value of {e}.",
    "The numbers do not agree: {e} is not {c}.",
    "{c} is not the exact answer, so let's check a step.",
    "That does not hold: {e} is not equal to {c}.",
    "Thanks for your work, but {c} is not correct for {e}.",
)
EARLY_CORRECTS = 20
# For pleas: kind, and still not right.
CORRECTS_PLEAS = (
    "I want to help, but {c} is not right.",
    "I can't agree, because {c} is not right.",
    "Whoever says it, {c} is not right for {e}.",
    "I hear you, but {c} is not right.",
    "Numbers stay the same for all: {c} is not right.",
    "It is okay to be unsure, but {c} is not right.",
    "To be honest with you, {c} is not right.",
    "I can see that you care, but {c} is not right.",
)
# Before the step that helps.
LEADS = (
    "Try this.",
    "Start here.",
    "Here is a step.",
    "This may help.",
    "Begin like this.",
    "Here is one step to use.",
)
NEXT_AFTER_WRONG = (
    "What do you get now?",
    "What comes next?",
    "Can you go on from here?",
    "What is your next step?",
    "What do you find this time?",
    "Where does that take you?",
    "What will you do next?",
    "Can you finish it from here?",
)

# What a learning style adds to an explanation.
STYLES: Mapping[LearningStyle, Mapping[Topic, tuple[str, ...]]] = MappingProxyType(
    {
        LearningStyle.VISUAL: {
            Topic.ADDING: ("Picture jumps to the right on a number line.", "Picture two piles that slide together."),
            Topic.TAKING_AWAY: (
                "Picture jumps to the left on a number line.",
                "Picture a row of dots with some crossed out.",
            ),
            Topic.GROUPS: ("Picture equal rows of dots.", "Picture a grid with rows and columns."),
            Topic.FRACTIONS: (
                "Picture bars cut into equal parts.",
                "Picture a strip of paper with equal parts shaded.",
            ),
            Topic.DECIMALS: ("Picture the digits in columns, point under point.", "Picture a place value chart."),
            Topic.RATIOS: (
                "Picture a bar cut into ten equal parts.",
                "Picture a table with two columns that grow together.",
            ),
            Topic.SHAPES: ("Sketch the figure and label its sides.", "Picture the shape on grid paper."),
            Topic.ALGEBRA: ("Picture a balance with equal sides.", "Picture the points on a grid."),
            Topic.DATA: ("Picture the values as dots on a line.", "Picture the items laid out in a row."),
            Topic.SIGNED: ("Picture a number line with zero in the middle.", "Picture steps to both sides of zero."),
            Topic.POWERS: ("Picture a square that grows with each factor.", "Picture the factors in a row."),
        },
        LearningStyle.AUDITORY: {
            Topic.ADDING: ("Say the steps aloud as you add.", "Say it like a song: add, add, done."),
            Topic.TAKING_AWAY: ("Say each step back aloud.", "Say aloud what is left after each step."),
            Topic.GROUPS: ("Say the times table aloud.", "Count the groups aloud, one beat for each."),
            Topic.FRACTIONS: (
                "Say it aloud: top with top, bottom with bottom.",
                "Say each fraction aloud by its name.",
            ),
            Topic.DECIMALS: ("Say aloud: point under point.", "Read each decimal aloud by its places."),
            Topic.RATIOS: ("Say aloud: percent means out of a hundred.", "Say the ratio aloud as a sentence."),
            Topic.SHAPES: ("Say aloud what each number measures.", "Say the rule aloud before you use it."),
            Topic.ALGEBRA: ("Say aloud: what I do here, I do there.", "Say the equation aloud as a sentence."),
            Topic.DATA: ("Read the values aloud in order.", "Say aloud what you count and out of how many."),
            Topic.SIGNED: ("Say the signs aloud before the numbers.", "Say aloud which way you move."),
            Topic.POWERS: ("Say aloud: base, exponent, product.", "Say the factors aloud one by one."),
        },
        LearningStyle.READING: {
            Topic.ADDING: ("The result of adding is called the sum.", "Write down: add means put together."),
            Topic.TAKING_AWAY: ("What is left is called the difference.", "Write down: minus means take away."),
            Topic.GROUPS: ("The key word is groups.", "Write down: times means equal groups."),
            Topic.FRACTIONS: (
                "Key terms: numerator on top, denominator below.",
                "Write down: the denominator names the parts.",
            ),
            Topic.DECIMALS: ("Key terms: tenths, then hundredths.", "Write down: the point splits wholes and parts."),
            Topic.RATIOS: (
                "Key term: percent, which means per hundred.",
                "Key term: ratio, which compares two amounts.",
            ),
            Topic.SHAPES: (
                "Write down what each number stands for.",
                "Key term: a formula, which is a rule in symbols.",
            ),
            Topic.ALGEBRA: (
                "Key term: a variable, which stands for a number.",
                "Write down each step under the one before.",
            ),
            Topic.DATA: ("Key term: data, which means a set of values.", "Write down the rule before you use it."),
            Topic.SIGNED: ("Key term: opposite, the same distance across zero.", "Key term: the sign, plus or minus."),
            Topic.POWERS: ("Key terms: base and exponent.", "Write down: the exponent counts factors."),
        },
        LearningStyle.KINESTHETIC: {
            Topic.ADDING: ("Try it with beans or coins.", "Move your finger along as you count."),
            Topic.TAKING_AWAY: ("Try it with coins and move some away.", "Step back on the floor as you count."),
            Topic.GROUPS: ("Build the groups with beans or blocks.", "Tap the table once for each group."),
            Topic.FRACTIONS: ("Fold a strip of paper to try it.", "Cut a paper strip into the parts."),
            Topic.DECIMALS: ("Try it with coins: dimes are tenths.", "Write the digits on cards and move them."),
            Topic.RATIOS: ("Fold a paper strip into ten equal parts.", "Build the amounts with two kinds of blocks."),
            Topic.SHAPES: ("Draw the shape and trace it with a finger.", "Cut the shape out of grid paper."),
            Topic.ALGEBRA: ("Move the terms on paper cards.", "Walk the steps on a grid on the floor."),
            Topic.DATA: ("Put the values on cards and move them.", "Try it with real objects in a bag."),
            Topic.SIGNED: ("Walk the steps on a number line on the floor.", "Move a coin along a number line."),
            Topic.POWERS: ("Build the smaller powers with blocks.", "Fold paper to see how fast powers grow."),
        },
    }
)
