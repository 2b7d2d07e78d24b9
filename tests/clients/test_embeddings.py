import math
import struct
import unittest

import settings

TEXTS = ["The quick brown fox", "Once upon a time", "SELECT age FROM head"]
SIZE = 576  # numbers of a hidden state of the default base


def length(vector):
    return math.sqrt(sum(x * x for x in vector))


class Embeddings(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = settings.openai_client()
        cls.addClassCleanup(cls.client.close)

    def embed(self, input, model=None, **options):
        return self.client.embeddings.create(
            model=model or settings.base, input=input, **options
        )

    def vectors(self, input, **options):
        return [entry.embedding for entry in self.embed(input, **options).data]

    def test_a_string(self):
        answer = self.embed(TEXTS[0], encoding_format="float")
        self.assertEqual(answer.object, "list")
        self.assertEqual(answer.model, settings.base)
        [entry] = answer.data
        self.assertEqual((entry.object, entry.index), ("embedding", 0))
        self.assertEqual(len(entry.embedding), SIZE)
        self.assertAlmostEqual(length(entry.embedding), 1, places=5)
        self.assertEqual(answer.usage.prompt_tokens, 4)
        self.assertEqual(answer.usage.total_tokens, 4)

    def test_base64_which_the_client_asks_for_by_default_holds_the_same_numbers(self):
        def in_f32(vectors):
            return [struct.pack(f"{len(vector)}f", *vector) for vector in vectors]

        floats = self.vectors(TEXTS, encoding_format="float")
        self.assertEqual(in_f32(self.vectors(TEXTS)), in_f32(floats))

    def test_a_batch_equals_its_inputs_alone(self):
        alone = [self.vectors(text)[0] for text in TEXTS]
        self.assertEqual(self.vectors(TEXTS), alone)
        self.assertEqual([entry.index for entry in self.embed(TEXTS).data], [0, 1, 2])

    def test_dimensions_are_cut_and_scaled_again(self):
        [whole] = self.vectors(TEXTS[0])
        [cut] = self.vectors(TEXTS[0], dimensions=64)
        self.assertEqual(len(cut), 64)
        scale = length(whole[:64])
        for got, x in zip(cut, whole):
            self.assertAlmostEqual(got, x / scale, places=5)

    def test_the_mean_differs_from_the_last(self):
        [last] = self.vectors(TEXTS[0], extra_body={"pooling": "last"})
        [mean] = self.vectors(TEXTS[0], extra_body={"pooling": "mean"})
        self.assertEqual([last], self.vectors(TEXTS[0]))
        self.assertLess(sum(a * b for a, b in zip(last, mean)), 0.999)

    def test_a_ticket_has_vectors_of_its_own(self):
        [base] = self.vectors(TEXTS[2])
        [ticket] = self.vectors(TEXTS[2], model=settings.ticket)
        self.assertNotEqual(base, ticket)
        self.assertAlmostEqual(length(ticket), 1, places=5)


class Tokens(unittest.TestCase):
    def test_text_becomes_tokens_and_text_again(self):
        with settings.http_client() as client:
            tokenized = client.post("../tokenize", json={"prompt": TEXTS[0]}).json()
            self.assertEqual(tokenized["tokens"], [504, 2365, 6354, 16438])
            text = client.post("../detokenize", json={"tokens": tokenized["tokens"]}).json()
            self.assertEqual(text, {"prompt": TEXTS[0]})
            facts = client.get("../tokenizer_info").json()
            self.assertEqual(facts["vocab_size"], 49152)
