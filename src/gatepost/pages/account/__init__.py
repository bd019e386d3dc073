"""`/me`: one's own account in a browser."""

from gatepost.pages.account import activity, emails, factors, profile, sessions

routes = [*profile.routes, *emails.routes, *factors.routes, *sessions.routes, *activity.routes]
