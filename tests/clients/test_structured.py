"""Constrained answers: response_format and vLLM's fields, whole and streamed, also of a ticket."""

import json
import re
import unittest

import settings

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
ASK = [{"role": "user", "content": "Describe a person in JSON."}]


class Structured(unittest.TestCase):
    def setUp(self):
        self.client = settings.openai_client()

    def chat(self, model=None, **fields):
        return self.client.chat.completions.create(
            model=model or settings.base, messages=ASK, max_tokens=120, seed=1, **fields
        )

    def assert_person(self, text):
        person = json.loads(text)
        self.assertEqual(sorted(person), ["age", "name", "tags"])
        self.assertIn(person["age"], range(151))
        self.assertLessEqual(len(person["tags"]), 2)

    def test_a_schema_binds_every_choice(self):
        schema = {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON, "strict": True}}
        for model in [settings.base, settings.ticket]:
            answer = self.chat(model, response_format=schema, n=3, temperature=1.5)
            self.assertEqual(len(answer.choices), 3)
            for choice in answer.choices:
                self.assertEqual(choice.finish_reason, "stop")
                self.assert_person(choice.message.content)

    def test_the_parse_helper_of_the_package_works(self):
        import pydantic

        class Capital(pydantic.BaseModel):
            country: str = pydantic.Field(max_length=20)
            population: int

        answer = self.client.chat.completions.parse(
            model=settings.base,
            messages=settings.CAPITAL_QUESTION,
            response_format=Capital,
            max_tokens=120,
            temperature=0,
        )
        self.assertIsInstance(answer.choices[0].message.parsed, Capital)

    def test_a_constrained_stream_is_the_whole_answer_in_pieces(self):
        fields = {"extra_body": {"guided_json": PERSON}, "temperature": 0}
        whole = self.chat(**fields).choices[0].message.content
        chunks = self.chat(stream=True, **fields)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertEqual(text, whole)
        self.assert_person(text)

    def test_any_json_object(self):
        answer = self.chat(response_format={"type": "json_object"}, temperature=0)
        choice = answer.choices[0]
        if choice.finish_reason == "stop":
            self.assertIsInstance(json.loads(choice.message.content), dict)
        self.assertTrue(choice.message.content.startswith("{"))

    def test_regex_choice_and_grammar_bind_plain_completions_too(self):
        def text(**extra):
            answer = self.client.completions.create(
                model=settings.base, prompt="Answer: ", max_tokens=20, seed=2, extra_body=extra
            )
            return answer.choices[0].text

        self.assertRegex(text(guided_regex=r"[0-9]{3}-[0-9]{4}"), r"^[0-9]{3}-[0-9]{4}$")
        self.assertIn(text(guided_choice=["yes", "no", "möglich"]), ["yes", "no", "möglich"])
        lark = 'start: "<" /[a-z]{2,5}/ ">"'
        self.assertTrue(re.fullmatch(r"<[a-z]{2,5}>", text(guided_grammar=lark)))
        gbnf = 'root ::= "a" ("b" | "c")+ "d"'
        grammar = {"structured_outputs": {"grammar": gbnf}}
        self.assertRegex(text(**grammar)[:2], r"^a[bc]$")

    def test_logprobs_and_stop_work_beside_a_grammar(self):
        answer = self.chat(
            extra_body={"guided_regex": "[ab]{8}"}, logprobs=True, top_logprobs=2, stop="ab"
        )
        choice = answer.choices[0]
        self.assertRegex(choice.message.content, r"^[ab]*$")
        self.assertNotIn("ab", choice.message.content)
        self.assertTrue(choice.logprobs.content)

    def test_a_schema_that_cannot_be_honoured_is_refused_by_its_pointer(self):
        import openai

        schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
        with self.assertRaises(openai.BadRequestError) as refused:
            self.chat(extra_body={"guided_json": schema})
        self.assertEqual(refused.exception.param, "guided_json/uniqueItems")


if __name__ == "__main__":
    unittest.main()
