"""A backend on Django (port 8003), in one file."""

import os
import sys
from typing import Any

from django.conf import settings
from django.core.management import call_command, execute_from_command_line
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

settings.configure(
    SECRET_KEY=os.urandom(32).hex(),
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("NOTES_DB", "notes.sqlite3")}
    },
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    MIDDLEWARE=[__name__ + ".cors", "gatepost_client.django.GatepostMiddleware"],
    AUTHENTICATION_BACKENDS=["gatepost_client.django.GatepostBackend"],
    GATEPOST={
        "url": os.environ.get("GATEPOST_URL", "http://127.0.0.1:8000"),
        "token": os.environ["GATEPOST_SERVICE_TOKEN"],
        "mode": "leased",
    },
)


def cors(get_response: Any) -> Any:
    """Let the page of the other origin read the answers; real projects take django-cors-headers."""

    def middleware(request: HttpRequest) -> HttpResponse:
        answer: HttpResponse = HttpResponse() if request.method == "OPTIONS" else get_response(request)
        answer["Access-Control-Allow-Origin"] = "http://127.0.0.1:8001"
        answer["Access-Control-Allow-Headers"] = "Authorization"
        return answer

    return middleware


def notes(request: Any) -> HttpResponse:
    """Whose notes these are: the user's row is this project's own, and mirrors Gatepost's by id."""
    if not request.user.is_authenticated:
        return HttpResponse(status=401)
    name = request.signed_in.username
    return JsonResponse({"framework": "Django", "notes_of": name, "user": request.user.get_username()})


urlpatterns = [path("notes", notes)]

if __name__ == "__main__":
    import django

    django.setup()
    call_command("migrate", verbosity=0)
    execute_from_command_line(sys.argv)
