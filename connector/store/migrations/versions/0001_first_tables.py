"""First tables: visits, budget, opt-outs, pseudonym keys, intake, operators."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "draws",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("visit_id", sa.String(length=64), nullable=False),
        sa.Column("permit_id", sa.String(length=200), nullable=False),
        sa.Column("dataset_id", sa.String(length=200), nullable=False),
        sa.Column("job", sa.String(length=64), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("events", sa.JSON(), nullable=False),
        sa.Column("request_sha256", sa.String(length=64), nullable=False),
        sa.Column("drawn_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("output_sha256", sa.String(length=64), nullable=True),
        sa.Column("output_bytes", sa.Integer(), nullable=True),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_draws")),
        sa.UniqueConstraint("visit_id", "job", "round", name=op.f("uq_draws_visit_id_job_round")),
    )
    op.create_index(op.f("ix_draws_dataset_id"), "draws", ["dataset_id"], unique=False)
    op.create_index(op.f("ix_draws_permit_id"), "draws", ["permit_id"], unique=False)
    op.create_index(op.f("ix_draws_visit_id"), "draws", ["visit_id"], unique=False)

    op.create_table(
        "ingests",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("dataset_id", sa.String(length=200), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ingests")),
    )
    op.create_index(op.f("ix_ingests_dataset_id"), "ingests", ["dataset_id"], unique=False)

    op.create_table(
        "issuer_state",
        sa.Column("issuer_kid", sa.String(length=64), nullable=False),
        sa.Column("serial", sa.Integer(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("issuer_kid", name=op.f("pk_issuer_state")),
    )
    op.create_table(
        "operators",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("salt", sa.LargeBinary(length=16), nullable=False),
        sa.Column("verifier", sa.LargeBinary(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_operators")),
    )
    op.create_table(
        "opt_outs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_opt_outs")),
    )
    op.create_index(op.f("ix_opt_outs_subject"), "opt_outs", ["subject"], unique=False)

    op.create_table(
        "pseudonym_keys",
        sa.Column("permit_id", sa.String(length=200), nullable=False),
        sa.Column("key", sa.LargeBinary(length=32), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("permit_id", name=op.f("pk_pseudonym_keys")),
    )
    op.create_table(
        "sessions",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("actor", sa.String(length=100), nullable=False),
        sa.Column("via", sa.String(length=32), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("form_key", sa.String(length=64), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_sessions")),
    )
    op.create_table(
        "visits",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("study_id", sa.String(length=200), nullable=False),
        sa.Column("permit_id", sa.String(length=200), nullable=False),
        sa.Column("dataset_id", sa.String(length=200), nullable=False),
        sa.Column("request_digest", sa.String(length=64), nullable=False),
        sa.Column("retry_key", sa.String(length=64), nullable=True),
        sa.Column("user_kid", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("code", sa.String(length=64), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("decided_by", sa.String(length=100), nullable=True),
        sa.Column("isolation", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("permit", sa.Text(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("receipt", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_visits")),
    )
    op.create_index(op.f("ix_visits_dataset_id"), "visits", ["dataset_id"], unique=False)
    op.create_index(op.f("ix_visits_permit_id"), "visits", ["permit_id"], unique=False)
    op.create_index(op.f("ix_visits_request_digest"), "visits", ["request_digest"], unique=False)
    op.create_index(op.f("ix_visits_state"), "visits", ["state"], unique=False)

    op.create_table(
        "acknowledgements",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("visit_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("receipt", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["visit_id"], ["visits.id"], name=op.f("fk_acknowledgements_visit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_acknowledgements")),
        sa.UniqueConstraint("visit_id", "kind", "sha256", name=op.f("uq_acknowledgements_visit_id_kind_sha256")),
    )
    op.create_index(op.f("ix_acknowledgements_visit_id"), "acknowledgements", ["visit_id"], unique=False)

    op.create_table(
        "reservations",
        sa.Column("visit_id", sa.String(length=64), nullable=False),
        sa.Column("permit_id", sa.String(length=200), nullable=False),
        sa.Column("dataset_id", sa.String(length=200), nullable=False),
        sa.Column("events", sa.JSON(), nullable=False),
        sa.Column("open", sa.Boolean(), nullable=False),
        sa.Column("reserved_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["visit_id"], ["visits.id"], name=op.f("fk_reservations_visit_id")),
        sa.PrimaryKeyConstraint("visit_id", name=op.f("pk_reservations")),
    )
    op.create_index(op.f("ix_reservations_dataset_id"), "reservations", ["dataset_id"], unique=False)
    op.create_index(op.f("ix_reservations_permit_id"), "reservations", ["permit_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_reservations_permit_id"), "reservations")
    op.drop_index(op.f("ix_reservations_dataset_id"), "reservations")

    op.drop_table("reservations")
    op.drop_index(op.f("ix_acknowledgements_visit_id"), "acknowledgements")

    op.drop_table("acknowledgements")
    op.drop_index(op.f("ix_visits_state"), "visits")
    op.drop_index(op.f("ix_visits_request_digest"), "visits")
    op.drop_index(op.f("ix_visits_permit_id"), "visits")
    op.drop_index(op.f("ix_visits_dataset_id"), "visits")

    op.drop_table("visits")
    op.drop_table("sessions")
    op.drop_table("pseudonym_keys")
    op.drop_index(op.f("ix_opt_outs_subject"), "opt_outs")

    op.drop_table("opt_outs")
    op.drop_table("operators")
    op.drop_table("issuer_state")
    op.drop_index(op.f("ix_ingests_dataset_id"), "ingests")

    op.drop_table("ingests")
    op.drop_index(op.f("ix_draws_visit_id"), "draws")
    op.drop_index(op.f("ix_draws_permit_id"), "draws")
    op.drop_index(op.f("ix_draws_dataset_id"), "draws")

    op.drop_table("draws")
