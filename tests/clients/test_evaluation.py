"""What evaluation tools ask of completions: echo, scores of prompts, batches, compositions."""

import unittest

import settings


class Evaluation(unittest.TestCase):
    def setUp(self):
        self.client = settings.openai_client()

    def complete(self, prompt, model=None, **fields):
        return self.client.completions.create(
            model=model or settings.base, prompt=prompt, temperature=0, **fields
        )

    def test_echo_scores_the_prompt(self):
        answer = self.complete("The capital of France is Paris", max_tokens=0, echo=True, logprobs=1)
        choice = answer.choices[0]
        self.assertEqual(choice.text, "The capital of France is Paris")
        scores = choice.logprobs
        self.assertEqual("".join(scores.tokens), choice.text)
        self.assertIsNone(scores.token_logprobs[0])
        self.assertTrue(all(score < 0 for score in scores.token_logprobs[1:]))
        # The last token is a likely one.
        self.assertGreater(scores.token_logprobs[-1], -3)
        self.assertEqual(answer.usage.completion_tokens, 0)

    def test_a_batch_larger_than_the_queue_is_answered(self):
        prompts = [f"{i} plus one is" for i in range(300)]
        answer = self.complete(prompts, max_tokens=1)
        self.assertEqual([choice.index for choice in answer.choices], list(range(300)))

    def test_prompt_scores_do_not_depend_on_the_batch(self):
        texts = ["The sky is blue.", "Water boils at one hundred degrees.", "One, two, three."]
        together = self.complete(texts, max_tokens=0, echo=True, logprobs=0)
        for text, choice in zip(texts, together.choices):
            alone = self.complete(text, max_tokens=0, echo=True, logprobs=0).choices[0]
            self.assertEqual(alone.logprobs.token_logprobs, choice.logprobs.token_logprobs)

    def test_choices_run_under_tickets_of_their_own(self):
        prompt = "Question: How many heads are older than 56?\nAnswer:"
        names = ["base", settings.ticket, f"{settings.ticket}@0.5"]
        compared = self.complete(
            prompt, n=3, seed=1, max_tokens=12, extra_body={"tickets_per_choice": names}
        )
        texts = [choice.text for choice in compared.choices]
        for name, text in zip(names, texts):
            alone = self.complete(prompt, name, seed=1, max_tokens=12)
            self.assertEqual(alone.choices[0].text, text, name)


if __name__ == "__main__":
    unittest.main()
