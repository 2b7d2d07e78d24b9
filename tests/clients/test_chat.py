import unittest

import settings


class Chat(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = settings.openai_client()
        cls.addClassCleanup(cls.client.close)

    def chat(self, messages=settings.CAPITAL_QUESTION, model=None, **options):
        options = {"max_tokens": 16, "temperature": 0, **options}
        model = model or settings.base
        return self.client.chat.completions.create(model=model, messages=messages, **options)

    def test_an_answer(self):
        answer = self.chat()
        self.assertEqual(answer.object, "chat.completion")
        [choice] = answer.choices
        self.assertEqual(choice.message.role, "assistant")
        self.assertEqual(choice.message.content, "The capital of France is Paris.")
        self.assertEqual(choice.finish_reason, "stop")
        usage = answer.usage
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)

    def test_max_completion_tokens(self):
        answer = self.client.chat.completions.create(
            model=settings.base,
            messages=settings.CAPITAL_QUESTION,
            temperature=0,
            max_completion_tokens=2,
        )
        self.assertEqual(answer.choices[0].finish_reason, "length")
        self.assertEqual(answer.usage.completion_tokens, 2)

    def test_content_in_parts(self):
        parts = [{"type": "text", "text": settings.CAPITAL_QUESTION[0]["content"]}]
        answer = self.chat([{"role": "user", "content": parts}])
        self.assertEqual(answer.choices[0].message.content, "The capital of France is Paris.")

    def test_a_stream_spells_the_whole_answer(self):
        *chunks, last = list(self.chat(stream=True, stream_options={"include_usage": True}))
        deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
        self.assertEqual(deltas[0].role, "assistant")
        text = "".join(delta.content or "" for delta in deltas)
        self.assertEqual(text, self.chat().choices[0].message.content)
        self.assertEqual(chunks[-1].choices[0].finish_reason, "stop")
        self.assertEqual(last.choices, [])
        self.assertEqual(last.usage.completion_tokens, self.chat().usage.completion_tokens)

    def test_the_package_s_own_stream_helper(self):
        with self.client.chat.completions.stream(
            model=settings.base, messages=settings.CAPITAL_QUESTION, max_tokens=16, temperature=0
        ) as stream:
            final = stream.get_final_completion()
        self.assertEqual(final.choices[0].message.content, "The capital of France is Paris.")

    def test_logprobs(self):
        choice = self.chat(max_tokens=3, logprobs=True, top_logprobs=2).choices[0]
        self.assertEqual(
            "".join(entry.token for entry in choice.logprobs.content), choice.message.content
        )
        for entry in choice.logprobs.content:
            self.assertEqual(len(entry.top_logprobs), 2)
            self.assertEqual(entry.token, entry.top_logprobs[0].token)
            self.assertLessEqual(entry.logprob, 0)
            self.assertEqual(bytes(entry.bytes).decode(), entry.token)

    def test_several_choices(self):
        answer = self.chat(n=2, temperature=1.5, seed=3)
        self.assertEqual([choice.index for choice in answer.choices], [0, 1])

    def test_streamed_choices_have_their_index(self):
        texts = {}
        for chunk in self.chat(n=2, stream=True):
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        self.assertEqual(texts, dict.fromkeys([0, 1], "The capital of France is Paris."))

    def test_a_stop_string(self):
        choice = self.chat(stop=" France").choices[0]
        self.assertEqual(choice.message.content, "The capital of")
        self.assertEqual(choice.finish_reason, "stop")

    def test_base_and_ticket_answer_differently(self):
        base = self.chat(settings.SQL_QUESTION).choices[0].message.content
        ticket = self.chat(settings.SQL_QUESTION, settings.ticket).choices[0].message.content
        self.assertTrue(ticket.startswith("SELECT"), ticket)
        self.assertFalse(base.startswith("SELECT"), base)
        # The base is unchanged.
        self.assertEqual(self.chat(settings.SQL_QUESTION).choices[0].message.content, base)

    def test_the_answer_names_the_model_that_was_asked(self):
        self.assertEqual(self.chat(model=settings.ticket, max_tokens=1).model, settings.ticket)
