"""Measures which pairs a sentence model finds similar: paraphrases, and pairs that only share topic and wording.

    python -m benchmarks.embeddings --model FOLDER

`FOLDER` holds a sentence model, such as all-MiniLM-L6-v2, as sentence-transformers saves it. Each question comes with
one that asks the same, and one that asks something else.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.preflight import bundle_of, sentences
from finetune_trainer.copies.deduplicate import SIMILAR_MEANING
from finetune_trainer.copies.embeddings import BATCH, SentenceModel
from finetune_trainer.storage.job_storage import open_storage

QUESTIONS = [
    ("How do I reset my password?", "How can I reset my password?", "How do I change my user name?"),
    ("What is the capital of Australia?", "Which city is the capital of Australia?", "What is the capital of Austria?"),
    (
        "My invoice from March shows the wrong amount.",
        "The amount on my March invoice is wrong.",
        "When will I receive my invoice for March?",
    ),
    (
        "How many days of vacation do new employees get?",
        "What number of vacation days does a new employee receive?",
        "How many days of sick leave do new employees get?",
    ),
    (
        "Can I return a pair of shoes I bought last week?",
        "Is it possible to return shoes that I purchased last week?",
        "Can I exchange a jacket for a larger size?",
    ),
    (
        "The app crashes every time I open the camera.",
        "Whenever I open the camera, the app crashes.",
        "The app is slow when I scroll through my photos.",
    ),
    (
        "Translate this sentence into French.",
        "Please translate the following sentence to French.",
        "Translate this sentence into German.",
    ),
    (
        "How long does it take to boil an egg?",
        "How much time do I need to boil an egg?",
        "How long does it take to bake a potato?",
    ),
    (
        "Where can I change the delivery address of my order?",
        "How do I update the shipping address for my order?",
        "Where can I see the delivery date of my order?",
    ),
    ("Why is the sky blue?", "What makes the sky look blue?", "Why is the sea salty?"),
    (
        "I cannot log in to my account since the update.",
        "Since the update I am unable to sign in to my account.",
        "I cannot delete my account since the update.",
    ),
    (
        "What are the side effects of ibuprofen?",
        "Which side effects does ibuprofen have?",
        "What are the side effects of aspirin?",
    ),
    (
        "Write a short poem about autumn.",
        "Compose a brief poem on the subject of autumn.",
        "Write a short story about autumn.",
    ),
    (
        "How do I cancel my subscription?",
        "I would like to cancel my subscription. What should I do?",
        "How do I renew my subscription?",
    ),
    (
        "Who wrote the novel Pride and Prejudice?",
        "Who is the author of Pride and Prejudice?",
        "Who wrote the novel Wuthering Heights?",
    ),
    (
        "The package arrived but the box was empty.",
        "My parcel was delivered with nothing in it.",
        "The package arrived two days late.",
    ),
    ("Is there a discount for students?", "Do you offer a student discount?", "Is there a discount for large orders?"),
    (
        "How far is the moon from the earth?",
        "What is the distance between the earth and the moon?",
        "How far is the sun from the earth?",
    ),
    (
        "Please send me a copy of my contract.",
        "Could you send a copy of my contract to me?",
        "Please send me a copy of my invoice.",
    ),
    (
        "My internet connection is very slow in the evening.",
        "In the evenings my internet is really slow.",
        "My internet connection drops when it rains.",
    ),
]
"""Triples: a question, a paraphrase, and a question with another meaning."""
TIMED = 640
"""Number of texts for the speed measurement."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    folder = parser.parse_args().model.absolute()
    with tempfile.TemporaryDirectory() as scratch:
        storage = open_storage(bundle_of(folder, folder, Path(scratch)))
        model = SentenceModel(storage, str(folder), Path(scratch) / "model")
        asked, same, other = (model.embed(list(texts)) for texts in zip(*QUESTIONS, strict=True))
        for what, texts in (("paraphrases", same), ("others", other)):
            cosines = np.sort((asked * texts).sum(1))
            alike = ", ".join(f"{(cosines >= at).sum()} at {at:g}" for at in (0.8, 0.85, SIMILAR_MEANING, 0.95))
            print(f"{what}: {cosines[0]:.2f} to {cosines[-1]:.2f}, median {np.median(cosines):.2f}; alike {alike}")
        timed = sorted(sentences(random.Random(0))[:TIMED], key=len)
        start = time.process_time()
        for first in range(0, TIMED, BATCH):
            model.embed(timed[first : first + BATCH])
        print(f"{TIMED / (time.process_time() - start):.0f} sentences per second of CPU time")


if __name__ == "__main__":
    main()
