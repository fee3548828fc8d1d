/* mutant.c - the table of deliberate faults; see mutant.h. */
#include "core/mutant.h"

enum mutant mutant_active = MUTANT_none;

static const struct { const char *name; unsigned seed; const char *text; } rows[] = {
	{ "none", 0, "no fault" },
#define MUTANT_ROW(name, seed, text) { #name, seed, text },
#include "core/mutants.def"
#undef MUTANT_ROW
};

const char *mutant_name(enum mutant m) { return rows[m].name; }
const char *mutant_text(enum mutant m) { return rows[m].text; }
unsigned mutant_seed(enum mutant m) { return rows[m].seed; }
