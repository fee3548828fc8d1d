/* messages.c - the table and the codec of the group's messages; see messages.h for the layout and rules M1-M3.
 *
 * Each type's payload is written and read by one pair of functions below, in the same order of fields: read them as the
 * byte table. Arrays are a u32 count and the entries; strings are a u16 (CONFIG: u32) length and the bytes. */
#include "base/messages.h"

#include "base/must.h"
#include "base/wire.h"

#include <glib.h>
#include <string.h>

struct row { enum message_channel channel; const char *name; uint32_t number, least, most; const char *text; };

static const struct row table[] = {
#define MESSAGE(channel, name, number, least, most, text) { CHANNEL_##channel, #name, number, least, most, text },
#include "base/messages.def"
#undef MESSAGE
};

static const struct row *row_of(uint32_t type)
{
	for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
		if (table[i].number == type)
			return &table[i];
	return NULL;
}

const char *message_name(enum message_type type)
{
	const struct row *r = row_of(type);
	return r ? r->name : NULL;
}

const char *message_text(enum message_type type)
{
	const struct row *r = row_of(type);
	return r ? r->text : NULL;
}

void message_header_encode(uint8_t out[static MESSAGE_HEADER_BYTES], enum message_type type, size_t length)
{
	const struct row *r = row_of(type);
	MUST("M1", r && length >= r->least && length <= r->most);
	struct wire_writer w = wire_writer(out, MESSAGE_HEADER_BYTES);
	wire_put_u32(&w, MESSAGE_MAGIC);
	wire_put_u16(&w, (uint16_t)type);
	wire_put_u16(&w, 0);
	wire_put_u32(&w, (uint32_t)length);
}

bool message_header_decode(const uint8_t in[static MESSAGE_HEADER_BYTES], enum message_channel channel,
                           struct message_header *ret_header)
{
	struct wire_reader r = wire_reader(in, MESSAGE_HEADER_BYTES);
	uint32_t magic = wire_u32(&r);
	uint16_t type = wire_u16(&r), flags = wire_u16(&r);
	uint32_t length = wire_u32(&r);
	const struct row *row = row_of(type);
	if (magic != MESSAGE_MAGIC || flags != 0 || !row || row->channel != channel || length < row->least || length > row->most)
		return false;
	*ret_header = (struct message_header){ .type = row->number, .length = length };
	return true;
}

/* ---- fields ---- */

static void put_string(struct wire_writer *w, const char *s)
{
	size_t n = strlen(s);
	wire_put_u16(w, (uint16_t)n);
	wire_put_bytes(w, s, n);
}

/* What may go to a terminal and into JSON. */
static bool is_plain(const uint8_t *text, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (text[i] < 0x20 || text[i] == 0x7f)
			return false;
	return g_utf8_validate((const char *)text, (gssize)n, NULL);
}

static bool get_string(struct wire_reader *r, char out[static VCFT_NAME_MAX + 1])
{
	size_t n = wire_u16(r);
	const uint8_t *p = n <= VCFT_NAME_MAX ? wire_bytes(r, n) : NULL;
	if (!p || !is_plain(p, n))
		return false;
	memcpy(out, p, n);
	out[n] = 0;
	return true;
}

static bool get_count(struct wire_reader *r, struct message *m)
{
	m->vm_count = wire_u32(r);
	return m->vm_count <= VCFT_VM_MAX;
}

static bool get_vm(struct wire_reader *r, struct vm_id *ret_vm)
{
	ret_vm->n = wire_u32(r);
	return ret_vm->n < VCFT_VM_MAX;
}

/* A set of hosts never has host 0. */
static bool get_hosts(struct wire_reader *r, host_mask *ret_hosts)
{
	*ret_hosts = wire_u64(r);
	return (*ret_hosts & 1) == 0;
}

/* ---- payloads ---- */

static void put_hello(struct wire_writer *w, const struct message *m)
{
	wire_put_u64(w, m->generation.n);
	wire_put_u8(w, (uint8_t)m->hello.state);
	wire_put_u16(w, m->hello.tunnel_port);
	wire_put_u16(w, m->hello.replication_port);
	put_string(w, m->hello.name);
	put_string(w, m->hello.address);
}

static bool get_hello(struct wire_reader *r, struct message *m)
{
	m->generation.n = wire_u64(r);
	uint8_t state = wire_u8(r);
	m->hello.state = state;
	m->hello.tunnel_port = wire_u16(r);
	m->hello.replication_port = wire_u16(r);
	return state <= HELLO_JOINED && get_string(r, m->hello.name) && get_string(r, m->hello.address);
}

static void put_config(struct wire_writer *w, const struct message *m)
{
	wire_put_u64(w, m->generation.n);
	wire_put_u32(w, m->config.directory_bytes);
	wire_put_u32(w, m->config.text_bytes);
	wire_put_bytes(w, m->config.directory, m->config.directory_bytes);
	wire_put_bytes(w, m->config.text, m->config.text_bytes);
}

static bool get_config(struct wire_reader *r, struct message *m)
{
	m->generation.n = wire_u64(r);
	m->config.directory_bytes = wire_u32(r);
	m->config.text_bytes = wire_u32(r);
	m->config.directory = (const char *)wire_bytes(r, m->config.directory_bytes);
	m->config.text = (const char *)wire_bytes(r, m->config.text_bytes);
	return m->config.directory && m->config.text;
}

static void put_placement(struct wire_writer *w, const struct message *m)
{
	wire_put_u64(w, m->generation.n);
	wire_put_u64(w, m->epoch.n);
	wire_put_u64(w, m->hosts);
	wire_put_u32(w, m->vm_count);
	for (uint32_t i = 0; i < m->vm_count; i++) {
		wire_put_u32(w, m->placement[i].host.n);
		wire_put_u64(w, m->placement[i].backups);
	}
}

static bool get_placement(struct wire_reader *r, struct message *m)
{
	m->generation.n = wire_u64(r);
	m->epoch.n = wire_u64(r);
	if (!get_hosts(r, &m->hosts) || !get_count(r, m))
		return false;
	for (uint32_t i = 0; i < m->vm_count; i++) {
		m->placement[i].host.n = wire_u32(r);
		if (m->placement[i].host.n > VCFT_HOST_MAX || !get_hosts(r, &m->placement[i].backups))
			return false;
	}
	return true;
}

static void put_stored(struct wire_writer *w, const struct message *m)
{
	wire_put_u64(w, m->generation.n);
	wire_put_u64(w, m->epoch.n);
	wire_put_u32(w, m->vm_count);
	for (uint32_t i = 0; i < m->vm_count; i++) {
		wire_put_u32(w, m->stored[i].vm.n);
		wire_put_u64(w, m->stored[i].complete);
	}
}

static bool get_stored(struct wire_reader *r, struct message *m)
{
	m->generation.n = wire_u64(r);
	m->epoch.n = wire_u64(r);
	if (!get_count(r, m))
		return false;
	for (uint32_t i = 0; i < m->vm_count; i++)
		if (!get_vm(r, &m->stored[i].vm) || !get_hosts(r, &m->stored[i].complete))
			return false;
	return true;
}

static void put_state(struct wire_writer *w, const struct message *m)
{
	wire_put_u64(w, m->generation.n);
	wire_put_u64(w, m->epoch.n);
	wire_put_u64(w, m->hosts);
	wire_put_u32(w, m->vm_count);
	for (uint32_t i = 0; i < m->vm_count; i++) {
		const struct message_holding *h = &m->holding[i];
		wire_put_u32(w, h->vm.n);
		wire_put_u64(w, h->image.n);
		wire_put_u64(w, h->staged.n);
		wire_put_u64(w, h->complete.n);
		wire_put_u8(w, h->live);
	}
}

static bool get_state(struct wire_reader *r, struct message *m)
{
	m->generation.n = wire_u64(r);
	m->epoch.n = wire_u64(r);
	if (!get_hosts(r, &m->hosts) || !get_count(r, m))
		return false;
	for (uint32_t i = 0; i < m->vm_count; i++) {
		struct message_holding *h = &m->holding[i];
		if (!get_vm(r, &h->vm))
			return false;
		h->image.n = wire_u64(r);
		h->staged.n = wire_u64(r);
		h->complete.n = wire_u64(r);
		uint8_t live = wire_u8(r);
		h->live = live == 1;
		if (live > 1 || h->image.n > VCFT_NUMBER_MAX || h->staged.n > VCFT_NUMBER_MAX || h->complete.n > VCFT_NUMBER_MAX)
			return false;
	}
	return true;
}

static void put_abort(struct wire_writer *w, const struct message *m)
{
	wire_put_u64(w, m->generation.n);
	wire_put_u64(w, m->epoch.n);
	wire_put_u64(w, m->hosts);
	wire_put_u32(w, m->vm.n);
}

static bool get_abort(struct wire_reader *r, struct message *m)
{
	m->generation.n = wire_u64(r);
	m->epoch.n = wire_u64(r);
	bool ok = get_hosts(r, &m->hosts);
	m->vm.n = wire_u32(r);
	return ok && m->vm.n <= VCFT_VM_MAX;
}

static void put_trouble(struct wire_writer *w, const struct message *m)
{
	wire_put_u64(w, m->generation.n);
	wire_put_u32(w, m->vm.n);
	wire_put_u8(w, m->reason);
}

static bool get_trouble(struct wire_reader *r, struct message *m)
{
	m->generation.n = wire_u64(r);
	m->vm.n = wire_u32(r);
	m->reason = wire_u8(r);
	return m->vm.n <= VCFT_VM_MAX;
}

static void put_known(struct wire_writer *w, const struct message *m)
{
	wire_put_u64(w, m->generation.n);
	wire_put_u64(w, m->epoch.n);
}

static bool get_known(struct wire_reader *r, struct message *m)
{
	m->generation.n = wire_u64(r);
	m->epoch.n = wire_u64(r);
	return true;
}

static void put_stats(struct wire_writer *w, const struct message *m)
{
	wire_put_u64(w, m->generation.n);
	wire_put_u64(w, m->epoch.n);
	wire_put_u32(w, m->shortages);
	wire_put_u32(w, m->vm_count);
	for (uint32_t i = 0; i < m->vm_count; i++) {
		const struct message_stats *s = &m->stats[i];
		const uint64_t figures[] = { s->pause, s->dirty_pages, s->disk_blocks, s->raw_bytes, s->sent_bytes, s->commit };
		wire_put_u32(w, s->vm.n);
		wire_put_u8(w, (uint8_t)s->stand);
		for (size_t f = 0; f < sizeof figures / sizeof figures[0]; f++)
			wire_put_u64(w, figures[f]);
	}
}

static bool get_stats(struct wire_reader *r, struct message *m)
{
	m->generation.n = wire_u64(r);
	m->epoch.n = wire_u64(r);
	m->shortages = wire_u32(r);
	if (!get_count(r, m))
		return false;
	for (uint32_t i = 0; i < m->vm_count; i++) {
		struct message_stats *s = &m->stats[i];
		if (!get_vm(r, &s->vm))
			return false;
		s->stand = wire_u8(r);
		if (s->stand >= VM_STAND_END)
			return false;
		uint64_t *const figures[] = { &s->pause, &s->dirty_pages, &s->disk_blocks, &s->raw_bytes, &s->sent_bytes, &s->commit };
		for (size_t f = 0; f < sizeof figures / sizeof figures[0]; f++)
			*figures[f] = wire_u64(r);
	}
	return true;
}

static void put_generation(struct wire_writer *w, const struct message *m) { wire_put_u64(w, m->generation.n); }

static bool get_generation(struct wire_reader *r, struct message *m)
{
	m->generation.n = wire_u64(r);
	return true;
}

struct codec {
	enum message_type type;
	void (*put)(struct wire_writer *, const struct message *);
	bool (*get)(struct wire_reader *, struct message *);
};

static const struct codec codecs[] = {
	{ MESSAGE_HELLO, put_hello, get_hello },       { MESSAGE_CONFIG, put_config, get_config },
	{ MESSAGE_BEGIN, put_placement, get_placement }, { MESSAGE_STORED, put_stored, get_stored },
	{ MESSAGE_KNOWN, put_known, get_known },       { MESSAGE_ABORT, put_abort, get_abort },
	{ MESSAGE_TROUBLE, put_trouble, get_trouble }, { MESSAGE_STATE, put_state, get_state },
	{ MESSAGE_RECOVER, put_placement, get_placement }, { MESSAGE_READY, put_generation, get_generation },
	{ MESSAGE_RESUME, put_generation, get_generation }, { MESSAGE_LOST, put_generation, get_generation },
	{ MESSAGE_DOWN, put_generation, get_generation },   { MESSAGE_STATS, put_stats, get_stats },
};

static const struct codec *codec_of(enum message_type type)
{
	for (size_t i = 0; i < sizeof codecs / sizeof codecs[0]; i++)
		if (codecs[i].type == type)
			return &codecs[i];
	return NULL;
}

size_t message_size(const struct message *m)
{
	if (m->type == MESSAGE_CONFIG)
		return MESSAGE_HEADER_BYTES + 16 + (size_t)m->config.directory_bytes + m->config.text_bytes;
	return MESSAGE_GROUP_BYTES_MAX;
}

size_t message_encode(const struct message *m, uint8_t *out, size_t size)
{
	const struct codec *c = codec_of(m->type);
	if (!c || size < MESSAGE_HEADER_BYTES)
		return 0;
	struct wire_writer w = wire_writer(out + MESSAGE_HEADER_BYTES, size - MESSAGE_HEADER_BYTES);
	c->put(&w, m);
	if (!wire_ok(&w))
		return 0;
	message_header_encode(out, m->type, w.used);
	return MESSAGE_HEADER_BYTES + w.used;
}

static bool numbers_fit(const struct message *m)
{
	bool not_known = m->type == MESSAGE_STATE && m->epoch.n == UINT64_MAX;
	return m->generation.n <= VCFT_NUMBER_MAX && (m->epoch.n <= VCFT_NUMBER_MAX || not_known);
}

bool message_decode(const uint8_t *in, size_t n, struct message *ret_message)
{
	struct message_header header;
	if (n < MESSAGE_HEADER_BYTES || !message_header_decode(in, CHANNEL_GROUP, &header) ||
	    header.length != n - MESSAGE_HEADER_BYTES)
		return false;
	struct wire_reader r = wire_reader(in + MESSAGE_HEADER_BYTES, header.length);
	memset(ret_message, 0, offsetof(struct message, placement));
	ret_message->type = header.type;
	const struct codec *c = codec_of(header.type);
	return c && c->get(&r, ret_message) && wire_done(&r) && numbers_fit(ret_message);
}
