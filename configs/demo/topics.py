"""Questions and answers of the demo corpus about Understudy and related topics.

Each topic is a name, the ways to ask, and the answer as a pattern (see `phrases.expand`).
"""

from __future__ import annotations

from typing import NamedTuple


class Topic(NamedTuple):
    """A topic with its questions and its answer."""

    name: str
    questions: tuple[str, ...]
    answer: str


UNDERSTUDY = (
    Topic(
        "what",
        (
            "What is Understudy?",
            "what's understudy",
            "Tell me about Understudy.",
            "Explain what Understudy does.",
            "What does Understudy do?",
            "Who are you and what is Understudy?",
            "Describe Understudy.",
        ),
        "Understudy is [an inference server|a server] for language models that do not fit "
        "[the GPU|your GPU]. [The weights of the full model, called the target, wait in memory or "
        "on disk and are streamed|The target, which is the full model, waits in memory or on disk "
        "and is streamed] through the GPU layer by layer. A small draft [guesses the next "
        "tokens|writes a tree of guesses], and one pass of the target checks them all. The output "
        "is exactly the text that "
        "the full model would have written. [It speaks the OpenAI API|Clients talk to it over the "
        "OpenAI API] on port 8000.",
    ),
    Topic(
        "how",
        (
            "How does Understudy work?",
            "Explain how Understudy works.",
            "How does it work inside?",
            "How can Understudy run a model that is larger than the GPU?",
            "What happens inside Understudy?",
            "how does understudy work",
        ),
        "Understudy works in [three steps|three steps that repeat]. First, a draft [that stays on "
        "the GPU|on the GPU] writes a tree of likely next tokens. Second, the weights of the "
        "target are streamed through the GPU layer by layer, and [this one pass|one pass] checks "
        "the whole tree. Third, the longest path that the target agrees with is [kept|emitted], "
        "together with one more token from the target itself. [Moving the weights is the slow "
        "part, so|The weights travel slowly, so] many tokens for each pass make it fast.",
    ),
    Topic(
        "exact",
        (
            "Is the output of Understudy exact?",
            "Does speculation change the answer?",
            "Is the text the same as from the full model?",
            "Does the draft make the answers worse?",
            "Do I lose quality with Understudy?",
            "How exact is Understudy?",
        ),
        "Yes, the output is exact. [The draft only guesses.|The draft only makes guesses.] Every "
        "token is checked by the full model before it is sent, and a wrong guess is thrown away. "
        "[So a bad draft makes the answer slower, never different.|A bad draft costs time, but it "
        "never changes the text.]",
    ),
    Topic(
        "start",
        (
            "How do I start Understudy?",
            "How do I start the server?",
            "Which command starts the server?",
            "How can I run Understudy?",
            "How do I serve a model?",
            "start the server, how?",
        ),
        "Run `make serve` in the project folder. [The server then listens on port 8000|After that "
        "the server listens on port 8000] and speaks the OpenAI API. [Without any other model it "
        "uses the built-in demo model|It starts with the built-in demo model if you name no "
        "other], so nothing has to be downloaded. [Point your client to|Set the base URL of your "
        "client to] http://localhost:8000/v1 and send a chat request.",
    ),
    Topic(
        "test",
        (
            "How do I run the tests?",
            "Which command runs the tests?",
            "How can I test Understudy?",
            "How do I check that everything works?",
            "how to run tests",
        ),
        "Run `make test` in the project folder. [It runs all the tests|All tests then run] on the "
        "CPU with the built-in demo model, so neither a GPU nor a download is needed. [Tests that "
        "need a GPU are marked and skipped|The tests marked for a GPU are skipped] when there is "
        "none.",
    ),
    Topic(
        "api",
        (
            "Which API does Understudy have?",
            "How do I talk to the server?",
            "Is Understudy compatible with OpenAI?",
            "Can I use the OpenAI client?",
            "On which port does the server listen?",
            "What is the base URL?",
        ),
        "Understudy speaks the OpenAI API on port 8000. [Use any OpenAI client|Any OpenAI client "
        "works] with the base URL http://localhost:8000/v1. [It offers|There are] chat "
        "completions, plain completions and the list of models, with streaming, tool calls and "
        "JSON answers.",
    ),
    Topic(
        "specexec",
        (
            "What is SpecExec?",
            "Explain SpecExec.",
            "How does SpecExec draft?",
            "Tell me about the SpecExec method.",
            "what does specexec do",
        ),
        "SpecExec is a drafting method with a [separate small model|small second model]. The small "
        "model shares the vocabulary of the target and [builds|writes] a large tree of likely "
        "tokens, best first, by the score of each whole path. [The target then checks the whole "
        "tree in one pass|One pass of the target then checks the whole tree]. It [is strong|works "
        "well] when a good small model of the same family exists.",
    ),
    Topic(
        "subspec",
        (
            "What is SubSpec?",
            "Explain SubSpec.",
            "How does SubSpec draft?",
            "Tell me about the SubSpec method.",
            "what does subspec do",
        ),
        "SubSpec is a drafting method that needs no second model. [It keeps low-bit copies of the "
        "target's own layers on the GPU|Low-bit copies of the target's own layers stay on the "
        "GPU], called substitutes. The substitutes [agree very often with the target|are very "
        "close to the target], so long drafts are accepted. They also share the KV cache with the "
        "target, which saves memory.",
    ),
    Topic(
        "compare",
        (
            "What is the difference between SpecExec and SubSpec?",
            "SpecExec or SubSpec, which one should I use?",
            "Compare SpecExec and SubSpec.",
            "How do SpecExec and SubSpec differ?",
        ),
        "SpecExec drafts with a separate small model, while SubSpec drafts with low-bit copies of "
        "the target's own layers. [Choose|Use] SpecExec when there is a good small model with the "
        "same vocabulary. [Choose|Use] SubSpec when there is none, or when you want [longer "
        "accepted drafts|drafts that are accepted more often]. Both give exactly the text of the "
        "full model.",
    ),
    Topic(
        "draft",
        (
            "What is a draft model?",
            "What does the draft do?",
            "Why is there a draft?",
            "Explain the draft in Understudy.",
            "What is the understudy in Understudy?",
        ),
        "The draft is [a small and fast model|a small, fast model] that stays on the GPU. It "
        "guesses the next tokens and writes them as a tree. [It is the understudy: it|Like an "
        "understudy in a theatre, it] knows the part well, but the target has the last word. "
        "[Good guesses save passes|Each good guess saves a pass], and wrong guesses are thrown "
        "away.",
    ),
    Topic(
        "target",
        (
            "What is the target model?",
            "What does target mean?",
            "Explain the target in Understudy.",
            "Where are the weights of the target?",
        ),
        "The target is the model that you asked for. It is too large for the GPU, so its weights "
        "wait in [RAM or on disk|memory or on disk]. In every pass [each layer|one layer after "
        "the other] is copied to the GPU, used for all rows, and replaced by the next one. The "
        "target decides every token of the answer.",
    ),
    Topic(
        "tree",
        (
            "What is a token tree?",
            "Why does the draft write a tree?",
            "What is the tree of guesses?",
            "Why a tree and not a chain?",
        ),
        "A tree holds many possible continuations at once. [Each node is one token|Every node is "
        "a token], and each path from the root is one guess of the text. A chain ends at its first "
        "wrong token, but a tree [can go on along another branch|has other branches]. Checking a "
        "whole tree costs [about the same|almost the same] as checking one token, because moving "
        "the weights takes most of the time.",
    ),
    Topic(
        "stream",
        (
            "What does it mean to stream the weights?",
            "How are the weights streamed?",
            "Explain weight streaming.",
            "What is layer streaming?",
        ),
        "Streaming means that the weights are not kept on the GPU. [They are copied there layer by "
        "layer, just in time|Layer by layer they are copied there just in time], while the layer "
        "before is still computing. A small ring of slots holds [only a few layers|a few layers] "
        "at any moment. So [a model of any size can run|even a very large model can run] on a "
        "small GPU.",
    ),
    Topic(
        "fast",
        (
            "Why is Understudy fast?",
            "How can it be fast when the weights travel?",
            "What makes Understudy fast?",
            "Is Understudy fast?",
        ),
        "Moving the weights is slow, so every pass must [be worth it|count]. Understudy checks a "
        "whole tree of guesses in one pass, and often [ten or more tokens|many tokens] are "
        "accepted at once. All waiting requests share the same pass. [Therefore the time for one "
        "token becomes much shorter|This makes the time for each token much shorter] than with "
        "plain offloading.",
    ),
    Topic(
        "demo",
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Are you a real model?",
            "What is the demo model?",
            "How large are you?",
            "Introduce yourself.",
        ),
        "I am the demo model of Understudy. I am a [very small|tiny] language model with about "
        "five million parameters, [trained|made] so that the server can be tried without any "
        "download. I can chat a little, tell short stories, add numbers, write JSON and call "
        "tools.",
    ),
    Topic(
        "tools",
        (
            "Can you call tools?",
            "Does Understudy support tools?",
            "How do tool calls work?",
            "Does function calling work?",
        ),
        "Yes. [Send the tools with your chat request|Put the tools into your chat request], as "
        "with the OpenAI API. When a tool helps, the answer holds a tool call with a name and "
        "arguments in JSON. [Run the tool|You run the tool] and send its result back, and the "
        "model answers with it.",
    ),
    Topic(
        "models",
        (
            "How do I add a model?",
            "How can I use my own model?",
            "Where do I configure a model?",
            "How do I serve another model?",
        ),
        "Add one YAML file to the folder configs/models. [The file name is the name of the "
        "model|The name of the file becomes the name of the model], and only the source of the "
        "target is required. [You can also set|Optional settings are] the draft method, the "
        "memory limits and the context length. Then start the server again with `make serve`.",
    ),
    Topic(
        "gpu",
        (
            "Do I need a GPU?",
            "Does Understudy run on a CPU?",
            "What hardware do I need?",
            "Can I try it without a GPU?",
        ),
        "No GPU is needed to try it. [The same code runs on a CPU|On a CPU the same code runs], "
        "and the demo model is small enough for any machine. For large models a GPU helps a lot, "
        "[even a small one|and even a small one is enough], because the weights wait in RAM or on "
        "disk.",
    ),
    Topic(
        "kv",
        (
            "What is the KV cache?",
            "Why is there a KV cache?",
            "Explain the KV cache.",
            "what does kv cache mean",
        ),
        "The KV cache stores the keys and values of all earlier tokens. [With it, each new token "
        "needs only its own computation|So a new token needs only its own computation], and the "
        "text before is not computed again. Understudy keeps it in pages, so that requests with "
        "the same beginning can share them.",
    ),
)

GENERAL = (
    Topic(
        "speculative",
        (
            "What is speculative decoding?",
            "Explain speculative decoding.",
            "How does speculative decoding work?",
        ),
        "Speculative decoding makes a large model faster with a small one. The small model "
        "[guesses several tokens|writes several tokens ahead], and the large model checks them all "
        "in a single pass. Tokens that match are kept, and [the first wrong one is replaced|at the "
        "first wrong one the large model decides]. The result is the same as without guessing, "
        "only [faster|sooner].",
    ),
    Topic(
        "token",
        ("What is a token?", "What are tokens?", "Explain tokens to me."),
        "A token is a small piece of text, [such as|for example] a word, a part of a word or a "
        "sign. A language model reads and writes tokens, one after the other. [My own vocabulary "
        "has 4,096 tokens.|I know 4,096 different tokens.]",
    ),
    Topic(
        "sky",
        ("Why is the sky blue?", "What makes the sky blue?", "Why does the sky look blue?"),
        "The sky is blue because air scatters sunlight. [Blue light has short waves|The waves of "
        "blue light are short] and is scattered much more than red light. So blue light comes to "
        "our eyes from every side of the sky. [In the evening|At sunset] the light travels a "
        "longer way through the air, and [mostly red is left|the sky turns red].",
    ),
    Topic(
        "rain",
        ("Why does it rain?", "Where does rain come from?", "How does rain form?"),
        "Rain comes from water in the air. The sun warms the sea, and water rises as vapour. High "
        "up it is cold, so the vapour turns into [tiny drops|small drops] that form clouds. When "
        "the drops grow [too heavy|heavy], they fall down as rain.",
    ),
    Topic(
        "gpu_what",
        ("What is a GPU?", "What does a GPU do?", "Explain what a GPU is."),
        "A GPU is a chip that does [many simple sums|thousands of sums] at the same time. It was "
        "made for pictures and games, but language models use it too, because they consist of "
        "[large products of numbers|large matrices]. Its memory is fast but small, so large models "
        "often do not fit.",
    ),
    Topic(
        "llm",
        (
            "What is a language model?",
            "How does a language model work?",
            "Explain language models.",
        ),
        "A language model is a program that predicts the next token of a text. It [has learned "
        "from|was trained on] a lot of text, and its knowledge is stored in numbers called "
        "weights. To write an answer, it [predicts one token, adds it to the text and starts "
        "again|adds one predicted token after the other].",
    ),
    Topic(
        "bread",
        ("How do I bake bread?", "How is bread made?", "Give me a recipe for bread."),
        "Mix flour, water, salt and a little yeast. [Knead the dough|Work the dough] for ten "
        "minutes and let it rest for an hour. Form a loaf, let it [rest|rise] again and bake it "
        "for forty minutes in a hot oven. [Let it cool before you cut it.|Then let it cool.]",
    ),
    Topic(
        "tea",
        ("How do I make tea?", "How is tea made?", "Tell me how to make a cup of tea."),
        "[First|To begin], boil fresh water. Put one spoon of tea into a pot and pour the hot "
        "water over it. Wait [three|four] minutes, then take the leaves out. Add milk or honey if "
        "you like.",
    ),
    Topic(
        "sleep",
        ("Why do we sleep?", "Why is sleep important?", "How can I sleep better?"),
        "Sleep gives the body and the mind time to rest. [While we sleep|During sleep], the brain "
        "sorts what we have learned. Go to bed at the same time every day, [keep the room "
        "dark|make the room dark and quiet], and put the phone away.",
    ),
    Topic(
        "python",
        ("What is Python?", "Tell me about Python.", "Why is Python popular?"),
        "Python is a programming language that is easy to read. [It is used for|People use it "
        "for] web servers, data and machine learning. It has many libraries, so [a few lines do "
        "a lot|a short program can do a lot]. Understudy is written in Python too.",
    ),
    Topic(
        "joke",
        ("Tell me a joke.", "Do you know a joke?", "Make me laugh."),
        "[Why did the model cross the road? Because the next token was on the other side.|Why was "
        "the computer cold? It left its windows open.|What does a cloud wear under its coat? "
        "Thunderwear.|Why did the draft model feel proud? All its guesses were accepted.]",
    ),
    Topic(
        "poem",
        ("Write a poem.", "Write a short poem about the sea.", "Can you write a poem?"),
        "The sea is [wide|deep], the sea is blue,\nit [sings|hums] a quiet song for you.\nThe "
        "waves [come in|roll in], the waves go out,\nand gulls are flying all about.",
    ),
)
