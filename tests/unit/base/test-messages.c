/* test-messages.c - M1-M3: every message of the table comes back as it was sent, and nothing else is taken for a message. */
#include "base/messages.h"

#include "base/wire.h"

#include <glib.h>
#include <string.h>

static const struct { enum message_channel channel; enum message_type type; const char *name; size_t least, most; } rows[] = {
#define MESSAGE(channel, name, number, least, most, text) { CHANNEL_##channel, MESSAGE_##name, #name, least, most },
#include "base/messages.def"
#undef MESSAGE
};

static uint64_t any64(void) { return (uint64_t)g_test_rand_int() << 32 | (uint32_t)g_test_rand_int(); }
static uint64_t any_number(void) { return any64() & VCFT_NUMBER_MAX; }
static host_mask any_hosts(void) { return any64() & ~UINT64_C(1); }
static struct vm_id any_vm(uint32_t most) { return (struct vm_id){ (uint32_t)g_test_rand_int_range(0, (gint32)most + 1) }; }

static void any_name(char out[static VCFT_NAME_MAX + 1])
{
	int n = g_test_rand_int_range(0, VCFT_NAME_MAX + 1);
	for (int i = 0; i < n; i++)
		out[i] = (char)g_test_rand_int_range(0x20, 0x7f);
	out[n] = 0;
}

static void any_array(struct message *m)
{
	for (uint32_t i = 0; i < m->vm_count; i++)
		switch (m->type) {
		case MESSAGE_STORED:
			m->stored[i].vm = any_vm(VCFT_VM_MAX - 1);
			m->stored[i].complete = any_hosts();
			break;
		case MESSAGE_STATE:
			m->holding[i] = (struct message_holding){ any_vm(VCFT_VM_MAX - 1), { any_number() }, { any_number() }, { any_number() }, any64() & 1 };
			break;
		case MESSAGE_STATS:
			m->stats[i] = (struct message_stats){ any_vm(VCFT_VM_MAX - 1), any64(), any64(), any64(), any64(), any64(), any64(),
			                                        any64() % VM_STAND_END };
			break;
		default:
			m->placement[i].host.n = (uint32_t)g_test_rand_int_range(0, VCFT_HOST_MAX + 1);
			m->placement[i].backups = any_hosts();
		}
}

static struct message *any_message(enum message_type type, uint32_t vm_count)
{
	static struct message m;
	static char text[300];
	memset(&m, 0, sizeof m);
	m.type = type;
	m.generation.n = any_number();
	m.epoch.n = type == MESSAGE_STATE && g_test_rand_bit() ? UINT64_MAX : any_number();
	m.hosts = any_hosts();
	m.vm = any_vm(VCFT_VM_MAX);
	m.reason = (uint8_t)any64();
	m.shortages = (uint32_t)any64();
	any_name(m.hello.name);
	any_name(m.hello.address);
	m.hello.tunnel_port = (uint16_t)any64();
	m.hello.state = any64() & 1;
	m.config.directory = m.config.text = text;
	m.config.directory_bytes = (uint32_t)g_test_rand_int_range(0, sizeof text);
	m.config.text_bytes = (uint32_t)g_test_rand_int_range(0, sizeof text);
	for (size_t i = 0; i < sizeof text; i++)
		text[i] = (char)any64();
	m.vm_count = vm_count;
	any_array(&m);
	return &m;
}

static size_t encode(enum message_type type, uint32_t vm_count, uint8_t out[static MESSAGE_GROUP_BYTES_MAX])
{
	struct message *m = any_message(type, vm_count);
	size_t n = message_encode(m, out, MESSAGE_GROUP_BYTES_MAX);
	g_assert_cmpuint(n, >, MESSAGE_HEADER_BYTES);
	g_assert_cmpuint(n, <=, message_size(m));
	return n;
}

static void set_length(uint8_t *header, size_t n)
{
	struct wire_writer w = wire_writer(header + 8, 4);
	wire_put_u32(&w, (uint32_t)(n - MESSAGE_HEADER_BYTES));
}

static void each_group_message(void (*test)(enum message_type, uint32_t vm_count))
{
	const uint32_t counts[] = { 0, 1, 7, VCFT_VM_MAX };
	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++)
		for (size_t c = 0; rows[i].channel == CHANNEL_GROUP && c < G_N_ELEMENTS(counts); c++)
			test(rows[i].type, counts[c]);
}

/* What is decoded encodes to the same bytes again: no field is lost or moved. */
static void round_trip(enum message_type type, uint32_t vm_count)
{
	static uint8_t first[MESSAGE_GROUP_BYTES_MAX], again[MESSAGE_GROUP_BYTES_MAX];
	static struct message m;
	size_t n = encode(type, vm_count, first);
	g_assert_true(message_decode(first, n, &m));
	g_assert_cmpint(m.type, ==, type);
	g_assert_cmpuint(message_encode(&m, again, sizeof again), ==, n);
	g_assert_cmpmem(first, n, again, n);
	g_assert_cmpuint(message_encode(&m, again, n - 1), ==, 0);
}

static void test_round_trip(void)
{
	for (int i = 0; i < 20; i++)
		each_group_message(round_trip);
}

static void test_fields(void)
{
	uint8_t bytes[256];
	struct message m = { .type = MESSAGE_HELLO, .generation = { 7 }, .hello = { .name = "host1", .address = "10.77.0.1", .tunnel_port = 1,
	                     .replication_port = 2, .state = HELLO_JOINED } }, out;
	g_assert_true(message_decode(bytes, message_encode(&m, bytes, sizeof bytes), &out));
	g_assert_cmpstr(out.hello.name, ==, "host1");
	g_assert_cmpstr(out.hello.address, ==, "10.77.0.1");
	g_assert_cmpuint(out.hello.tunnel_port, ==, 1);
	g_assert_cmpuint(out.hello.replication_port, ==, 2);
	g_assert_cmpint(out.hello.state, ==, HELLO_JOINED);
	g_assert_cmpuint(out.generation.n, ==, 7);
	m = (struct message){ .type = MESSAGE_TROUBLE, .generation = { 8 }, .vm = { VCFT_VM_MAX }, .reason = 9 };
	g_assert_true(message_decode(bytes, message_encode(&m, bytes, sizeof bytes), &out));
	g_assert_cmpuint(out.vm.n, ==, VCFT_VM_MAX);
	g_assert_cmpuint(out.reason, ==, 9);
}

/* M2: cut off anywhere, or with something behind it; with the length that it had, and with the one that it has now. */
static void wrong_size(enum message_type type, uint32_t vm_count)
{
	static uint8_t whole[MESSAGE_GROUP_BYTES_MAX + 16];
	static struct message m;
	size_t n = encode(type, vm_count, whole);
	for (size_t k = 0; k < n; k++) {
		g_autofree uint8_t *cut = g_memdup2(whole, k);
		g_assert_false(message_decode(cut, k, &m));
		if (k < MESSAGE_HEADER_BYTES)
			continue;
		set_length(cut, k);
		g_assert_false(message_decode(cut, k, &m));
	}
	for (size_t k = n + 1; k < n + 16; k++) {
		g_assert_false(message_decode(whole, k, &m));
		set_length(whole, k);
		g_assert_false(message_decode(whole, k, &m));
		set_length(whole, n);
	}
}

static void test_m2_wrong_size(void) { each_group_message(wrong_size); }

/* Bytes of a good message changed at random: refused, or a message that encodes to the same bytes. */
static void damaged(enum message_type type, uint32_t vm_count)
{
	static uint8_t bytes[MESSAGE_GROUP_BYTES_MAX], again[MESSAGE_GROUP_BYTES_MAX];
	static struct message m;
	for (int i = 0; i < 200; i++) {
		size_t n = encode(type, vm_count, bytes);
		for (int k = g_test_rand_int_range(1, 4); k > 0; k--)
			bytes[g_test_rand_int_range(i % 2 ? 0 : MESSAGE_HEADER_BYTES, (gint32)n)] = (uint8_t)any64();
		if (!message_decode(bytes, n, &m))
			continue;
		g_assert_cmpuint(message_encode(&m, again, sizeof again), ==, n);
		g_assert_cmpmem(bytes, n, again, n);
	}
}

static void test_damaged(void) { each_group_message(damaged); }

static void test_random_bytes(void)
{
	static uint8_t bytes[600];
	static struct message m;
	for (int i = 0; i < 20000; i++) {
		size_t n = (size_t)g_test_rand_int_range(0, sizeof bytes);
		for (size_t k = 0; k < n; k++)
			bytes[k] = (uint8_t)any64();
		if (n >= MESSAGE_HEADER_BYTES && i % 2) {
			struct wire_writer w = wire_writer(bytes, 8);
			wire_put_u32(&w, MESSAGE_MAGIC);
			wire_put_u32(&w, (uint32_t)g_test_rand_int_range(0, 16));
			set_length(bytes, n);
		}
		message_decode(bytes, n, &m);
	}
}

/* M1 */
static void test_m1_header(void)
{
	uint8_t h[MESSAGE_HEADER_BYTES];
	struct message_header out;
	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
		g_assert_cmpstr(message_name(rows[i].type), ==, rows[i].name);
		g_assert_nonnull(message_text(rows[i].type));
		message_header_encode(h, rows[i].type, rows[i].most);
		g_assert_true(message_header_decode(h, rows[i].channel, &out));
		g_assert_cmpuint(out.length, ==, rows[i].most);
		g_assert_false(message_header_decode(h, (rows[i].channel + 1) % 3, &out));
		set_length(h, MESSAGE_HEADER_BYTES + rows[i].most + 1);
		g_assert_false(message_header_decode(h, rows[i].channel, &out));
		if (rows[i].least == 0)
			continue;
		set_length(h, MESSAGE_HEADER_BYTES + rows[i].least - 1);
		g_assert_false(message_header_decode(h, rows[i].channel, &out));
	}
	for (size_t byte = 0; byte < 8; byte++) {
		message_header_encode(h, MESSAGE_KNOWN, 16);
		h[byte] ^= 0x80;
		g_assert_false(message_header_decode(h, CHANNEL_GROUP, &out));
	}
	g_assert_null(message_name(0));
}

static void test_numbers_are_used_once(void)
{
	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++)
		for (size_t k = 0; k < i; k++)
			g_assert_cmpint(rows[i].type, !=, rows[k].type);
}

/* M3: each number just out of range. The offsets are those of messages.c. */
static void test_m3_ranges(void)
{
	static uint8_t b[MESSAGE_GROUP_BYTES_MAX];
	static struct message m;
	const struct { enum message_type type; uint32_t vms; size_t at; uint8_t value[4]; unsigned bytes; } bad[] = {
		{ MESSAGE_BEGIN, 1, 16, { 1 }, 1 },                     /* host 0 among the participants */
		{ MESSAGE_BEGIN, 1, 28, { VCFT_HOST_MAX + 1, 0, 0, 0 }, 4 }, /* host too high */
		{ MESSAGE_BEGIN, 1, 32, { 1 }, 1 },                     /* host 0 as a backup */
		{ MESSAGE_STORED, 1, 20, { 0, 1, 0, 0 }, 4 },           /* VM 256 */
		{ MESSAGE_STATE, 1, 56, { 2 }, 1 },                     /* a bool that is 2 */
		{ MESSAGE_ABORT, 0, 24, { 1, 1, 0, 0 }, 4 },            /* VM 257 */
		{ MESSAGE_HELLO, 0, 8, { 2 }, 1 },                      /* a state that is none */
		{ MESSAGE_HELLO, 0, 13, { 64, 0 }, 2 },                 /* a name too long */
		{ MESSAGE_READY, 0, 7, { 0x80 }, 1 },                   /* a generation behind which none can come */
		{ MESSAGE_KNOWN, 0, 15, { 0x80 }, 1 },                  /* an epoch likewise */
		{ MESSAGE_STATE, 1, 39, { 0x80 }, 1 },                  /* an image at such a one */
	};
	for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
		size_t n = encode(bad[i].type, bad[i].vms, b);
		memcpy(b + MESSAGE_HEADER_BYTES + bad[i].at, bad[i].value, bad[i].bytes);
		g_assert_false(message_decode(b, n, &m));
	}
}

/* M3: names go to terminals and into JSON. */
static void test_m3_names(void)
{
	static const char *const bad[] = { "a\nb", "\033[2J", "\177", "\xff", "caf\xc3" };
	uint8_t bytes[256];
	struct message out, m = { .type = MESSAGE_HELLO, .hello.name = "caf\xc3\xa9" };
	g_assert_true(message_decode(bytes, message_encode(&m, bytes, sizeof bytes), &out));
	for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
		g_strlcpy(m.hello.name, bad[i], sizeof m.hello.name);
		g_assert_false(message_decode(bytes, message_encode(&m, bytes, sizeof bytes), &out));
	}
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/base/messages/round-trip", test_round_trip);
	g_test_add_func("/base/messages/fields", test_fields);
	g_test_add_func("/base/messages/M1-header", test_m1_header);
	g_test_add_func("/base/messages/M2-wrong-size", test_m2_wrong_size);
	g_test_add_func("/base/messages/M3-ranges", test_m3_ranges);
	g_test_add_func("/base/messages/M3-names", test_m3_names);
	g_test_add_func("/base/messages/numbers-are-used-once", test_numbers_are_used_once);
	g_test_add_func("/base/messages/damaged", test_damaged);
	g_test_add_func("/base/messages/random-bytes", test_random_bytes);
	return g_test_run();
}
