/* mutant.h - deliberate faults of the protocol, for the simulator to find. In every build but the simulator's own, MUTANT() is the constant
 * false and leaves no code behind. One is active at a time; each names the rule that it breaks. */
#ifndef VCFT_CORE_MUTANT_H
#define VCFT_CORE_MUTANT_H

#ifdef VCFT_MUTANTS

enum mutant {
	MUTANT_none,
#define MUTANT_ROW(name, seed, text) MUTANT_##name,
#include "core/mutants.def"
#undef MUTANT_ROW
	MUTANT_COUNT
};
extern enum mutant mutant_active;
const char *mutant_name(enum mutant m);
const char *mutant_text(enum mutant m);
/* A run of the simulator that is known to find it: a hint, any change may make it another. */
unsigned mutant_seed(enum mutant m);
#define MUTANT(name) (mutant_active == MUTANT_##name)

#else
#define MUTANT(name) false
#endif

#endif
