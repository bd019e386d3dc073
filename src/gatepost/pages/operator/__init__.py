"""`/operator`: users, events and an overview, for the role `admin`."""

from gatepost.pages.operator import events, overview, users

routes = [*overview.routes, *users.routes, *events.routes]
