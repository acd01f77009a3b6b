#!/bin/sh
# FOLDER/fhir: a Synthea cohort as NDJSON, the same for the same seeds and dates. Appears whole or not at all.
set -eu
target=$1
here=$(dirname "$0")
rm -rf "$target.new"
mkdir -p "$target.new"
# two spellings of one date: without it, the cohort would go on to the day of the run
java -Xmx4g -cp "$here/target/lib/*" App -p "${PATIENTS:-100}" -s 11 -cs 11 -r 20260101 -e 20260101 -a 40-79 \
    --generate.thread_pool_size 1 --exporter.fhir.export true --exporter.fhir.bulk_data true \
    --exporter.fhir.included_resources Patient,Observation,Condition,MedicationRequest,Encounter \
    --exporter.hospital.fhir.export false --exporter.practitioner.fhir.export false \
    --exporter.years_of_history 10 --exporter.baseDirectory "$target.new/" Massachusetts >"$target.new/log" 2>&1 ||
    { tail -20 "$target.new/log"; exit 1; }
rm -rf "$target"
mv "$target.new" "$target"
