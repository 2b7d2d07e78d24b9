"""Models and tickets through HTTP, from upload to deletion."""

import contextlib
import unittest

import openai

import settings


class Tickets(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = settings.openai_client()
        cls.addClassCleanup(cls.client.close)
        cls.http = settings.http_client()
        cls.addClassCleanup(cls.http.close)
        with open(settings.ticket_file, "rb") as file:
            cls.content = file.read()

    def upload(self, name, content=None, **fields):
        file = ("upload.safetensors", self.content if content is None else content)
        return self.http.post("/tickets", data={"name": name, **fields}, files={"file": file})

    def upload_by_openai(self, name, content):
        """Like upload, but through the openai package, which raises its errors."""
        return self.client.post(
            "/tickets",
            cast_to=object,
            body={"name": name},
            files={"file": ("upload.safetensors", content)},
            options={"headers": {"Content-Type": "multipart/form-data"}},
        )

    @contextlib.contextmanager
    def uploaded(self, name):
        answer = self.upload(name)
        self.assertEqual(answer.status_code, 201, answer.text)
        try:
            yield answer.json()
        finally:
            self.http.delete(f"/tickets/{name}")

    def ask(self, model):
        answer = self.client.chat.completions.create(
            model=model, messages=settings.SQL_QUESTION, max_tokens=16, temperature=0
        )
        return answer.choices[0].message.content

    def models(self):
        return {model.id: model for model in self.client.models.list()}

    def test_models_are_the_base_and_its_tickets(self):
        models = self.models()
        base, ticket = models[settings.base], models[settings.ticket]
        self.assertEqual((base.parent, base.root), (None, settings.base))
        self.assertEqual((ticket.parent, ticket.root), (settings.base, settings.ticket))
        self.assertEqual(self.client.models.retrieve(settings.ticket).id, settings.ticket)

    def test_an_upload_serves_at_once_and_until_it_is_deleted(self):
        name = "clients-life"
        with self.uploaded(name) as facts:
            self.assertEqual(facts["name"], name)
            listed = {ticket["name"]: ticket for ticket in self.http.get("/tickets").json()["data"]}
            listing = {key: facts[key] for key in facts if key != "training"}
            self.assertEqual(listed[name], listing)
            self.assertEqual(self.http.get(f"/tickets/{name}").json(), facts)
            # The same content under another name is the same generation.
            self.assertEqual(facts["digest"], listed[settings.ticket]["digest"])
            self.assertEqual(self.models()[name].parent, settings.base)
            self.assertEqual(self.ask(name), self.ask(settings.ticket))

            self.assertEqual(self.http.delete(f"/tickets/{name}").status_code, 200)
            self.assertNotIn(name, self.models())
            with self.assertRaises(openai.NotFoundError):
                self.ask(name)
            self.assertEqual(self.http.get(f"/tickets/{name}").status_code, 404)
            self.assertEqual(self.http.delete(f"/tickets/{name}").status_code, 404)

    def test_a_name_in_use_is_replaced_only_on_request(self):
        name = "clients-twice"
        with self.uploaded(name):
            with self.assertRaises(openai.ConflictError) as caught:
                self.upload_by_openai(name, self.content)
            self.assertEqual(caught.exception.code, "ticket_exists")
            self.assertEqual(self.upload(name, replace="true").status_code, 201)

    def test_a_file_that_is_no_ticket_is_refused_with_the_reason(self):
        broken = {
            "noise": b"\xff" * 4096,
            "empty": b"",
            "cut": self.content[: len(self.content) // 2],
            "longer": self.content + b"\0",
        }
        for what, content in broken.items():
            with self.subTest(what):
                with self.assertRaises(openai.UnprocessableEntityError) as caught:
                    self.upload_by_openai("clients-broken", content)
                self.assertGreater(len(caught.exception.body["message"]), 10)
        self.assertNotIn("clients-broken", self.models())

    def test_names_that_are_refused(self):
        for name in ["", "up per", "../up", "a/b", ".dot", "a" * 65, settings.base]:
            with self.subTest(name):
                answer = self.upload(name)
                self.assertEqual(answer.status_code, 400, answer.text)
                self.assertEqual(answer.json()["error"]["param"], "name")

    def test_a_form_without_a_file(self):
        answer = self.http.post("/tickets", files={"name": (None, "clients-none")})
        self.assertEqual(answer.status_code, 400)
        self.assertEqual(answer.json()["error"]["param"], "file")


class Metrics(unittest.TestCase):
    def test_a_swap_is_counted(self):
        with settings.openai_client() as client, settings.http_client() as http:
            for model in [settings.base, settings.ticket, settings.base]:
                client.completions.create(model=model, prompt="a", max_tokens=1)
            text = http.get(settings.url + "/metrics").text
        swaps = [
            line for line in text.splitlines() if line.startswith("tombola_") and "swap" in line
        ]
        self.assertTrue(any(float(line.split()[-1]) > 0 for line in swaps), swaps)
