/* fault.h - named fault points: trouble that tests can order, shipped with the product.
 *
 *     if (fault(FAULT_SEND_TORN)) n /= 2;
 *
 * F1 A fault point that is not switched on costs one load and a branch that is never taken. F2 A fault fires as often as it was
 *    told to, then it is off. F3 Faults go by name; what is not in faults.def is refused.
 * Switched on by the environment, VIRTCFT_FAULTS=name[:count],..., when the process calls fault_read_environment(), or by fault_set().
 * count: how often it fires, 1 if left out, * for always. Any thread. */
#ifndef VCFT_BASE_FAULT_H
#define VCFT_BASE_FAULT_H

#include <glib.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum fault {
#define FAULT(name, string, kind, text) FAULT_##name,
#include "base/faults.def"
#undef FAULT
	FAULT_END
};

/* HARD: the operation must fail, the guest lives, the retry passes. SOFT: it must still succeed. */
enum fault_kind { FAULT_HARD, FAULT_SOFT };

#define FAULT_ALWAYS UINT32_MAX
#define FAULT_ERROR (fault_error_quark())
GQuark fault_error_quark(void);

/* Switch a fault on for count times (FAULT_ALWAYS: until switched off), or off (0). */
void fault_set(enum fault f, unsigned count);
/* The same from text, "name[:count],...". False with error: nothing is changed. */
gboolean fault_set_text(const char *text, GError **error);
/* fault_set_text() of VIRTCFT_FAULTS; true if it is not set. */
gboolean fault_read_environment(GError **error);
/* All off; the counts of fault_fired() start again. */
void fault_clear(void);
/* How often it has fired. */
unsigned fault_fired(enum fault f);

/* The table. fault_find: FAULT_END if there is none of that name. */
const char *fault_name(enum fault f);
const char *fault_text(enum fault f);
enum fault_kind fault_kind(enum fault f);
enum fault fault_find(const char *name);

extern atomic_uint fault_on_count; /* faults that are switched on */
bool fault_fire(enum fault f);

/* True: let the operation go wrong here. */
static inline bool fault(enum fault f)
{
	return __builtin_expect(atomic_load_explicit(&fault_on_count, memory_order_relaxed) != 0, 0) && fault_fire(f);
}

#endif
