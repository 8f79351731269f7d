"""From files, folders and the hub to rows, and from prepared data on the disk back to them.

An entry's rows (`sources`), as they stand in the file also where `datasets` would guess (`reading`,
`json_columns`); what is kept for later runs (`prepared`), and by what it is known again (`fingerprint`).
"""
