"""The outbox: mail is a row, written with what it tells; a sender in each process takes it from there."""
