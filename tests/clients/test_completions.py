import unittest

import settings

PROMPT = "The quick brown fox"
PROMPT_IDS = [504, 2365, 6354, 16438]  # PROMPT in the default base's tokenizer
OTHER_PROMPT = "Once upon a time"


class Completions(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = settings.openai_client()
        cls.addClassCleanup(cls.client.close)

    def complete(self, prompt=PROMPT, **options):
        options = {"max_tokens": 8, "temperature": 0, **options}
        return self.client.completions.create(model=settings.base, prompt=prompt, **options)

    def test_a_string(self):
        answer = self.complete()
        self.assertEqual(answer.object, "text_completion")
        self.assertEqual(answer.model, settings.base)
        [choice] = answer.choices
        self.assertEqual(choice.index, 0)
        self.assertEqual(choice.finish_reason, "length")
        self.assertTrue(choice.text.startswith(" with a quick brown bear"), choice.text)
        self.assertEqual(answer.usage.prompt_tokens, len(PROMPT_IDS))
        self.assertEqual(answer.usage.completion_tokens, 8)
        self.assertEqual(answer.usage.total_tokens, len(PROMPT_IDS) + 8)

    def test_token_ids_are_the_string_that_they_spell(self):
        self.assertEqual(self.complete(PROMPT_IDS).choices[0].text, self.complete().choices[0].text)

    def test_a_list_answers_each_prompt_in_its_place(self):
        both = self.complete([PROMPT, OTHER_PROMPT])
        self.assertEqual([choice.index for choice in both.choices], [0, 1])
        for choice, prompt in zip(both.choices, [PROMPT, OTHER_PROMPT]):
            self.assertEqual(choice.text, self.complete(prompt).choices[0].text)

    def test_a_list_of_token_id_lists(self):
        both = self.complete([PROMPT_IDS, PROMPT_IDS])
        self.assertEqual(
            [choice.text for choice in both.choices], [self.complete().choices[0].text] * 2
        )

    def test_a_stream_spells_the_whole_answer(self):
        chunks = list(self.complete(stream=True, stream_options={"include_usage": True}))
        *chunks, last = chunks
        text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
        self.assertEqual(text, self.complete().choices[0].text)
        self.assertEqual(chunks[-1].choices[0].finish_reason, "length")
        self.assertTrue(all(chunk.usage is None for chunk in chunks))
        self.assertEqual(last.choices, [])
        self.assertEqual(last.usage.completion_tokens, 8)

    def test_a_stream_without_the_option_reports_no_usage(self):
        chunks = list(self.complete(stream=True))
        self.assertTrue(all(chunk.usage is None and chunk.choices for chunk in chunks))

    def test_logprobs(self):
        choice = self.complete(max_tokens=4, logprobs=3).choices[0]
        logprobs = choice.logprobs
        self.assertEqual("".join(logprobs.tokens), choice.text)
        self.assertEqual(len(logprobs.tokens), 4)
        self.assertEqual(logprobs.text_offset[0], 0)
        for token, own, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
            self.assertEqual(len(top), 3)
            self.assertLessEqual(own, 0)
            # Greedy: the chosen token is the most likely.
            self.assertEqual(top[token], max(top.values()))
            self.assertAlmostEqual(top[token], own, places=5)

    def test_several_choices(self):
        answer = self.complete(n=2, temperature=1.5, seed=1, max_tokens=12)
        self.assertEqual([choice.index for choice in answer.choices], [0, 1])
        self.assertNotEqual(answer.choices[0].text, answer.choices[1].text)
        self.assertEqual(answer.usage.completion_tokens, 24)

    def test_a_seed_fixes_the_random_tokens(self):
        def sample(seed):
            return self.complete(temperature=1.5, seed=seed, max_tokens=12).choices[0].text

        self.assertEqual(sample(7), sample(7))
        self.assertNotEqual(sample(7), sample(8))

    def test_a_stop_string_ends_the_text_before_it(self):
        whole = self.complete().choices[0].text
        # Begins and ends within words, so that it is not aligned with tokens.
        stop = "uick brow"
        self.assertIn(stop, whole)
        stopped = self.complete(stop=[stop, "never"]).choices[0]
        self.assertEqual(stopped.text, whole[: whole.index(stop)])
        self.assertEqual(stopped.finish_reason, "stop")

    def test_a_streamed_stop_string_is_never_sent(self):
        whole = self.complete().choices[0].text
        chunks = list(self.complete(stop="uick brow", stream=True))
        text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
        self.assertEqual(text, whole[: whole.index("uick brow")])
        self.assertEqual(chunks[-1].choices[0].finish_reason, "stop")

    def test_a_cancelled_stream_leaves_the_server_working(self):
        with self.complete(stream=True, max_tokens=200) as stream:
            next(iter(stream))
        self.assertEqual(self.complete().usage.completion_tokens, 8)
