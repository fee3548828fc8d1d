/* fault.c - see fault.h. Each fault has the number of times that it will still fire; fault_on_count is how many of them are not 0, so that
 * the usual answer needs one load. A count is only changed by compare-and-swap or exchange, and whoever takes it from or to 0 corrects fault_on_count. */
#include "base/fault.h"

#include <string.h>

static const struct { const char *name; enum fault_kind kind; const char *text; } table[] = {
#define FAULT(name, string, kind, text) [FAULT_##name] = { string, FAULT_##kind, text },
#include "base/faults.def"
#undef FAULT
};

atomic_uint fault_on_count;
static atomic_uint remaining[FAULT_END], fired[FAULT_END];

GQuark fault_error_quark(void) { return g_quark_from_static_string("virtcft-fault"); }

const char *fault_name(enum fault f) { return f < FAULT_END ? table[f].name : NULL; }
const char *fault_text(enum fault f) { return f < FAULT_END ? table[f].text : NULL; }
enum fault_kind fault_kind(enum fault f) { return table[f].kind; }
unsigned fault_fired(enum fault f) { return atomic_load(&fired[f]); }

enum fault fault_find(const char *name)
{
	enum fault f = 0;
	while (f < FAULT_END && strcmp(table[f].name, name) != 0)
		f++;
	return f;
}

void fault_set(enum fault f, unsigned count)
{
	unsigned before = atomic_exchange(&remaining[f], count);
	if (!before && count)
		atomic_fetch_add(&fault_on_count, 1);
	if (before && !count)
		atomic_fetch_sub(&fault_on_count, 1);
}

void fault_clear(void)
{
	for (enum fault f = 0; f < FAULT_END; f++) {
		fault_set(f, 0);
		atomic_store(&fired[f], 0);
	}
}

bool fault_fire(enum fault f)
{
	unsigned n = atomic_load(&remaining[f]);
	do {
		if (n == 0)
			return false;
	} while (n != FAULT_ALWAYS && !atomic_compare_exchange_weak(&remaining[f], &n, n - 1));
	if (n == 1)
		atomic_fetch_sub(&fault_on_count, 1);
	atomic_fetch_add(&fired[f], 1);
	return true;
}

/* "name" or "name:count" */
static gboolean parse_one(const char *text, enum fault *ret_fault, unsigned *ret_count, GError **error)
{
	g_auto(GStrv) part = g_strsplit(text, ":", 2);
	enum fault f = fault_find(part[0] ? part[0] : "");
	guint64 count = 1;
	if (f == FAULT_END) {
		g_set_error(error, FAULT_ERROR, 0, "no fault has the name '%s'; expected one of faults.def", part[0] ? part[0] : "");
		return FALSE;
	}
	if (part[1] && !strcmp(part[1], "*"))
		count = FAULT_ALWAYS;
	else if (part[1] && !g_ascii_string_to_unsigned(part[1], 10, 0, G_MAXINT32, &count, NULL)) {
		g_set_error(error, FAULT_ERROR, 0, "fault %s: '%s' is no count; expected a number or *", part[0], part[1]);
		return FALSE;
	}
	*ret_fault = f;
	*ret_count = (unsigned)count;
	return TRUE;
}

gboolean fault_set_text(const char *text, GError **error)
{
	unsigned count[FAULT_END];
	bool given[FAULT_END] = { false };
	g_auto(GStrv) items = g_strsplit(text, ",", -1);
	for (char **item = items; *item; item++) {
		enum fault f;
		unsigned n;
		if (!**item)
			continue;
		if (!parse_one(*item, &f, &n, error))
			return FALSE;
		count[f] = n;
		given[f] = true;
	}
	for (enum fault f = 0; f < FAULT_END; f++)
		if (given[f])
			fault_set(f, count[f]);
	return TRUE;
}

gboolean fault_read_environment(GError **error)
{
	const char *text = g_getenv("VIRTCFT_FAULTS");
	if (!text || fault_set_text(text, error))
		return TRUE;
	g_prefix_error(error, "VIRTCFT_FAULTS: ");
	return FALSE;
}
