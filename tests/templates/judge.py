"""Renders chat templates as transformers does (`_compile_jinja_template`).

Reads a JSON list of `{"template": ..., "context": ...}` from standard input, and writes the list of
`{"text": ...}` or `{"error": ...}` to standard output.
"""

import datetime
import json
import sys

from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


def raise_exception(message):
    raise TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def strftime_now(form):
    return datetime.datetime.now(datetime.timezone.utc).strftime(form)


def render(case):
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    try:
        template = environment.from_string(case["template"])
        return {"text": template.render(**case["context"])}
    except Exception as error:  # Any error of a template is a result.
        return {"error": f"{type(error).__name__}: {error}"}


json.dump([render(case) for case in json.load(sys.stdin)], sys.stdout)
