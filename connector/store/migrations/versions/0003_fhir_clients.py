"""Clients of the local FHIR API, and the assertions that they have used."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "fhir_clients",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("jwks", sa.JSON(), nullable=True),
        sa.Column("jku", sa.Text(), nullable=True),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("permit_id", sa.String(length=200), nullable=False),
        sa.Column("permit", sa.Text(), nullable=False),
        sa.Column("registered_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("registered_by", sa.String(length=100), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_fhir_clients")),
    )
    op.create_index(op.f("ix_fhir_clients_permit_id"), "fhir_clients", ["permit_id"], unique=False)
    op.create_table(
        "fhir_assertions",
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("jti_sha256", sa.String(length=64), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("client_id", "jti_sha256", name=op.f("pk_fhir_assertions")),
    )
    op.create_index(op.f("ix_fhir_assertions_expires_at"), "fhir_assertions", ["expires_at"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_fhir_assertions_expires_at"), "fhir_assertions")
    op.drop_table("fhir_assertions")
    op.drop_index(op.f("ix_fhir_clients_permit_id"), "fhir_clients")
    op.drop_table("fhir_clients")
