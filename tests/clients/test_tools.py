"""Tools: forced calls always parse, whole and streamed; results go back into the conversation."""

import json
import unittest

import openai
import settings

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {}}}
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]


class Tools(unittest.TestCase):
    def setUp(self):
        self.client = settings.openai_client()

    def chat(self, messages=ASK, model=None, **fields):
        return self.client.chat.completions.create(
            model=model or settings.base,
            messages=messages,
            tools=[WEATHER, TIME],
            max_tokens=100,
            temperature=0,
            **fields,
        )

    def assert_weather(self, function):
        self.assertEqual(function.name, "get_weather")
        arguments = json.loads(function.arguments)
        self.assertEqual(sorted(arguments), ["city", "unit"])
        self.assertIn(arguments["unit"], ["celsius", "fahrenheit"])

    def test_a_named_tool_is_called(self):
        choice = {"type": "function", "function": {"name": "get_weather"}}
        for model in [settings.base, settings.ticket]:
            answer = self.chat(model=model, tool_choice=choice, parallel_tool_calls=False)
            message = answer.choices[0].message
            self.assertEqual(answer.choices[0].finish_reason, "tool_calls")
            self.assertIsNone(message.content)
            [call] = message.tool_calls
            self.assertEqual(call.type, "function")
            self.assert_weather(call.function)

    def test_required_tools_are_called_in_a_stream(self):
        chunks = list(self.chat(tool_choice="required", parallel_tool_calls=False, stream=True))
        deltas = [c.choices[0].delta for c in chunks if c.choices]
        calls = [call for delta in deltas for call in delta.tool_calls or []]
        self.assertTrue(calls[0].id)
        self.assertIn(calls[0].function.name, ["get_weather", "get_time"])
        self.assertTrue(all(call.index == 0 for call in calls))
        arguments = "".join(call.function.arguments for call in calls)
        self.assertIsInstance(json.loads(arguments), dict)
        self.assertEqual(chunks[-1].choices[0].finish_reason, "tool_calls")

    def test_results_go_back_into_the_conversation(self):
        choice = {"type": "function", "function": {"name": "get_weather"}}
        message = self.chat(tool_choice=choice, parallel_tool_calls=False).choices[0].message
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "18 degrees"}
        answer = self.chat(messages=[*ASK, message, result], tool_choice="none")
        self.assertTrue(answer.choices[0].message.content)
        self.assertFalse(answer.choices[0].message.tool_calls)

    def test_malformed_tools_are_refused_by_name(self):
        with self.assertRaises(openai.BadRequestError) as refused:
            self.client.chat.completions.create(
                model=settings.base, messages=ASK, tools=[{"type": "function", "function": {}}]
            )
        self.assertEqual(refused.exception.param, "tools[0].function.name")


if __name__ == "__main__":
    unittest.main()
