"""Errors: the openai package raises the expected class, with OpenAI's fields."""

import unittest

import openai

import settings


class Errors(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = settings.openai_client()
        cls.addClassCleanup(cls.client.close)

    def assert_refused(self, kind, code, call, *args, **options):
        with self.assertRaises(kind) as caught:
            call(*args, **options)
        error = caught.exception
        self.assertEqual(set(error.body), {"message", "type", "param", "code"})
        self.assertTrue(error.body["message"])
        if code is not None:
            self.assertEqual(error.code, code)
        return error

    def test_an_unknown_model(self):
        for create, prompt in [
            (self.client.completions.create, {"prompt": "a"}),
            (self.client.chat.completions.create, {"messages": settings.CAPITAL_QUESTION}),
        ]:
            for stream in [False, True]:
                self.assert_refused(
                    openai.NotFoundError,
                    "model_not_found",
                    create,
                    model="no-such",
                    stream=stream,
                    **prompt,
                )

    def test_looking_up_an_unknown_model(self):
        self.assert_refused(
            openai.NotFoundError, "model_not_found", self.client.models.retrieve, "no-such"
        )

    def test_a_prompt_over_the_context(self):
        error = self.assert_refused(
            openai.BadRequestError,
            "context_length_exceeded",
            self.client.completions.create,
            model=settings.base,
            prompt=[504] * 20_000,
            max_tokens=1,
        )
        self.assertIn("20000", error.message)

    def test_values_out_of_range(self):
        for param, value in [("temperature", -1), ("top_p", 2), ("max_tokens", -1), ("n", 0)]:
            options = {param: value}
            error = self.assert_refused(
                openai.BadRequestError,
                None,
                self.client.completions.create,
                model=settings.base,
                prompt="a",
                **options,
            )
            self.assertEqual(error.param, param)

    def test_a_body_that_is_not_json(self):
        with settings.http_client() as http:
            answer = http.post(
                "/completions", content=b'{"model": ', headers={"content-type": "application/json"}
            )
        self.assertEqual(answer.status_code, 400)
        self.assertEqual(answer.json()["error"]["type"], "invalid_request_error")

    def test_a_token_id_that_does_not_exist(self):
        self.assert_refused(
            openai.BadRequestError,
            None,
            self.client.completions.create,
            model=settings.base,
            prompt=[4_000_000],
        )

    def test_an_unknown_url(self):
        with settings.http_client() as http:
            answer = http.get("/no-such")
        self.assertEqual(answer.status_code, 404)
        self.assertIn("error", answer.json())
