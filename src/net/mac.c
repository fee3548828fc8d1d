/* mac.c - which MAC is where: pinned ones come from the configuration, learned ones from the frames (N3).
 *
 * One table for all networks; the key is the network and the address. Learned entries are bounded: when there are too many, all of them are
 * forgotten and what is unknown is flooded until it is learned again. Thread: switch. */
#include "net/net-private.h"

#include "base/must.h"

_Static_assert(sizeof(gpointer) == 8, "network and address are kept in the key pointer itself");

static gpointer key_of(uint32_t network, const uint8_t mac[static 6])
{
	uint64_t key = network;
	for (int i = 0; i < 6; i++)
		key = key << 8 | mac[i];
	return GSIZE_TO_POINTER(key);
}

/* All of the address takes part, the last bytes most. */
static guint key_hash(gconstpointer key)
{
	uint64_t k = GPOINTER_TO_SIZE(key) * UINT64_C(0x9e3779b97f4a7c15);
	return (guint)(k >> 32);
}

void mac_init(struct mac_table *table)
{
	table->entries = g_hash_table_new_full(key_hash, NULL, NULL, g_free);
	table->learned = 0;
}

void mac_clear(struct mac_table *table) { g_clear_pointer(&table->entries, g_hash_table_destroy); }

const struct mac_entry *mac_find(const struct mac_table *table, uint32_t network, const uint8_t mac[static 6])
{
	return g_hash_table_lookup(table->entries, key_of(network, mac));
}

void mac_pin(struct mac_table *table, uint32_t network, const uint8_t mac[static 6], struct mac_entry entry)
{
	const struct mac_entry *old = mac_find(table, network, mac);
	if (old && !old->pinned)
		table->learned--;
	entry.pinned = true;
	g_hash_table_replace(table->entries, key_of(network, mac), g_memdup2(&entry, sizeof entry));
}

static bool same_place(const struct mac_entry *a, const struct mac_entry *b)
{
	return a->place == b->place && a->port == b->port && a->host.n == b->host.n;
}

void mac_learn(struct mac_table *table, uint32_t network, const uint8_t mac[static 6], struct mac_entry entry)
{
	struct mac_entry *old = g_hash_table_lookup(table->entries, key_of(network, mac));
	if (old) {
		if (!same_place(old, &entry)) {
			MUST("N3", !old->pinned);
			*old = entry;
		}
		return;
	}
	if (table->learned >= LEARNED_MAX)
		mac_forget_learned(table);
	entry.pinned = false;
	g_hash_table_insert(table->entries, key_of(network, mac), g_memdup2(&entry, sizeof entry));
	table->learned++;
}

static gboolean is_pinned_to(gpointer key, gpointer value, gpointer vm)
{
	(void)key;
	const struct mac_entry *e = value;
	return e->pinned && e->vm.n == GPOINTER_TO_UINT(vm);
}

void mac_unpin_vm(struct mac_table *table, struct vm_id vm)
{
	g_hash_table_foreach_remove(table->entries, is_pinned_to, GUINT_TO_POINTER(vm.n));
}

static gboolean is_learned(gpointer key, gpointer value, gpointer unused)
{
	(void)key, (void)unused;
	return !((struct mac_entry *)value)->pinned;
}

void mac_forget_learned(struct mac_table *table)
{
	g_hash_table_foreach_remove(table->entries, is_learned, NULL);
	table->learned = 0;
}
