/* tls.c - see tls.h. GnuTLS never sees the socket: it takes from `in` and puts into `out`.
 *
 *   socket ──recv, much at once──► in ──record by record──► GnuTLS ──► tls_read
 *   socket ◄──send, a batch at once── out ◄── records of up to 16 KiB ── GnuTLS ◄── tls_write: pieces of many messages
 *
 * `out` always has room (TLS3 bounds it), so GnuTLS never has a half-written record of its own. Any thread. */
#include "base/tls.h"

#include "base/config.h"
#include "base/must.h"

#include <errno.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* AES-128 first: half the rounds of a pass, and as far out of reach. */
#define PRIORITY "SECURE128:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305"
#define IN_BYTES 65536u
#define HANDSHAKE_MAX 32768u    /* bytes of one message of the handshake */
#define CHAIN_MAX 8u            /* certificates in a file */
#define HOW "make new ones with `virtcft pki`, see virtcft(1), or say `tls: off`"

struct tls_credentials {
	gnutls_certificate_credentials_t x509;
	gnutls_priority_t priority;
	gint64 end;
};

struct tls {
	int fd;
	nsec_t deadline;                /* 0: none */
	gnutls_session_t session;       /* NULL: plain */
	enum tls_side side;
	char *expected;
	bool open, failed;
	bool ended, over;               /* the socket has no more; and all of it was handed out */
	bool content;                   /* with what is here: the socket is not asked */
	uint8_t *in, *out, *plain;      /* IN_BYTES, TLS_OUT_MAX, TLS_RECORD */
	size_t in_at, in_used, out_at, out_used;
	char why[200];
};

/* ---- credentials ---- */

static gboolean refuse(GError **error, const char *file, const char *format, ...) G_GNUC_PRINTF(3, 4);
static gboolean refuse(GError **error, const char *file, const char *format, ...)
{
	va_list ap;
	va_start(ap, format);
	g_autofree char *what = g_strdup_vprintf(format, ap);
	va_end(ap);
	g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_FILE, "%s: %s; expected ca.pem, cert.pem and key.pem of this host: " HOW, file, what);
	return FALSE;
}

static gboolean read_pem(const char *file, bool secret, gnutls_datum_t *ret, GError **error)
{
	struct stat st;
	g_autoptr(GError) why = NULL;
	char *text;
	gsize n;
	if (stat(file, &st) < 0)
		return refuse(error, file, "%s", g_strerror(errno));
	if (secret && (st.st_mode & 077 || (st.st_uid && st.st_uid != geteuid())))
		return refuse(error, file, "others may read this key (mode %04o, user %u): chmod 600, chown root", (unsigned)st.st_mode & 07777,
		              (unsigned)st.st_uid);
	if (!g_file_get_contents(file, &text, &n, &why))
		return refuse(error, file, "%s", why->message);
	*ret = (gnutls_datum_t){ (uint8_t *)text, (unsigned)n };
	return TRUE;
}

static bool names(gnutls_x509_crt_t certificate, const char *name)
{
	for (unsigned i = 0;; i++) {
		char san[256];
		size_t n = sizeof san;
		int kind = gnutls_x509_crt_get_subject_alt_name(certificate, i, san, &n, NULL);
		if (kind == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE)
			return false;
		if (kind == GNUTLS_SAN_DNSNAME && n == strlen(name) && memcmp(san, name, n) == 0)
			return true;
	}
}

static char *day(gint64 when)
{
	g_autoptr(GDateTime) t = g_date_time_new_from_unix_utc(when);
	return t ? g_date_time_format(t, "%Y-%m-%d") : g_strdup("?");
}

typedef struct { gnutls_x509_crt_t at[CHAIN_MAX]; unsigned count; } chain;

static void chain_clear(chain *c)
{
	while (c->count)
		gnutls_x509_crt_deinit(c->at[--c->count]);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(chain, chain_clear)

static gboolean chain_read(chain *c, const char *file, const gnutls_datum_t *pem, GError **error)
{
	unsigned n = CHAIN_MAX;
	int e = gnutls_x509_crt_list_import(c->at, &n, pem, GNUTLS_X509_FMT_PEM, GNUTLS_X509_CRT_LIST_IMPORT_FAIL_IF_EXCEED);
	if (e < 1)
		return refuse(error, file, "no certificate (%s)", gnutls_strerror(e));
	c->count = (unsigned)e;
	return TRUE;
}

/* What the other hosts will look at, looked at here first. */
static gboolean check_chain(const char *file, const chain *own, const chain *ca, const char *name, GError **error)
{
	gint64 now = g_get_real_time() / G_USEC_PER_SEC;
	unsigned status = 0;
	g_autofree char *from = day(gnutls_x509_crt_get_activation_time(own->at[0])), *to = day(gnutls_x509_crt_get_expiration_time(own->at[0]));
	if (!names(own->at[0], name))
		return refuse(error, file, "the certificate does not name this host, '%s' (`name` in virtcftd.yaml)", name);
	if (gnutls_x509_crt_get_activation_time(own->at[0]) > now || gnutls_x509_crt_get_expiration_time(own->at[0]) < now)
		return refuse(error, file, "the certificate is valid from %s to %s only", from, to);
	int e = gnutls_x509_crt_list_verify(own->at, (int)own->count, ca->at, (int)ca->count, NULL, 0, 0, &status);
	if (e < 0 || status)
		return refuse(error, file, "the certificate is not signed by the CA of ca.pem, or that is no longer valid");
	return TRUE;
}

static gint64 first_end(const chain *c, gint64 end)
{
	for (unsigned i = 0; i < c->count; i++)
		end = MIN(end, (gint64)gnutls_x509_crt_get_expiration_time(c->at[i]));
	return end;
}

static gboolean credentials_fill(struct tls_credentials *c, const char *folder, const char *name, GError **error)
{
	g_autofree char *ca_file = g_build_filename(folder, "ca.pem", NULL), *cert_file = g_build_filename(folder, "cert.pem", NULL);
	g_autofree char *key_file = g_build_filename(folder, "key.pem", NULL);
	gnutls_datum_t ca_pem = { 0 }, cert_pem = { 0 }, key_pem = { 0 };
	g_auto(chain) ca = { .count = 0 }, own = { .count = 0 };
	gboolean ok = read_pem(ca_file, false, &ca_pem, error) && read_pem(cert_file, false, &cert_pem, error) &&
	              read_pem(key_file, true, &key_pem, error) && chain_read(&ca, ca_file, &ca_pem, error) &&
	              chain_read(&own, cert_file, &cert_pem, error) && check_chain(cert_file, &own, &ca, name, error);
	if (ok) {
		c->end = first_end(&ca, first_end(&own, G_MAXINT64));
		int e = gnutls_certificate_set_x509_key_mem(c->x509, &cert_pem, &key_pem, GNUTLS_X509_FMT_PEM);
		if (e < 0)
			ok = refuse(error, key_file, "not the key of cert.pem (%s)", gnutls_strerror(e));
		else if ((e = gnutls_certificate_set_x509_trust_mem(c->x509, &ca_pem, GNUTLS_X509_FMT_PEM)) < 1)
			ok = refuse(error, ca_file, "no CA's certificate (%s)", gnutls_strerror(e));
	}
	if (key_pem.data)
		explicit_bzero(key_pem.data, key_pem.size);
	g_free(ca_pem.data);
	g_free(cert_pem.data);
	g_free(key_pem.data);
	return ok;
}

static int verify(gnutls_session_t session);

struct tls_credentials *tls_credentials_load(const char *folder, const char *name, GError **error)
{
	struct tls_credentials *c = g_new0(struct tls_credentials, 1);
	gboolean ok = FALSE;
	if (gnutls_certificate_allocate_credentials(&c->x509) < 0 || gnutls_priority_init(&c->priority, PRIORITY, NULL) < 0)
		g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_FILE, "GnuTLS here does not know \"%s\"", PRIORITY);
	else
		ok = credentials_fill(c, folder, name, error);
	if (!ok) {
		tls_credentials_free(c);
		return NULL;
	}
	gnutls_certificate_set_verify_function(c->x509, verify);
	return c;
}

void tls_credentials_free(struct tls_credentials *c)
{
	if (!c)
		return;
	if (c->x509)
		gnutls_certificate_free_credentials(c->x509);
	if (c->priority)
		gnutls_priority_deinit(c->priority);
	g_free(c);
}

gint64 tls_credentials_end(const struct tls_credentials *c) { return c->end; }

/* ---- the other side's certificate ---- */

static int reject(struct tls *t, const char *why)
{
	g_strlcpy(t->why, why, sizeof t->why);
	return GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR;
}

/* TLS1: called by GnuTLS in the handshake, on both sides. */
static int verify(gnutls_session_t session)
{
	struct tls *t = gnutls_session_get_ptr(session);
	const char *purpose = t->side == TLS_CONNECTS ? GNUTLS_KP_TLS_WWW_SERVER : GNUTLS_KP_TLS_WWW_CLIENT;
	gnutls_typed_vdata_st wanted = { .type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (uint8_t *)purpose };
	unsigned status = 0;
	gnutls_datum_t text = { 0 };
	if (gnutls_certificate_verify_peers(session, &wanted, 1, &status) < 0)
		return reject(t, "no certificate that can be read");
	if (status) {
		gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0);
		reject(t, text.data ? (const char *)text.data : "certificate refused");
		g_strchomp(t->why);
		gnutls_free(text.data);
		return GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR;
	}
	if (t->side == TLS_CONNECTS && !tls_names(t, t->expected)) {
		g_autofree char *why = g_strdup_printf("the certificate is not that of host %s", t->expected);
		return reject(t, why);
	}
	return 0;
}

bool tls_names(const struct tls *t, const char *name)
{
	unsigned count = 0;
	gnutls_x509_crt_t certificate;
	if (!t->session)
		return true;
	const gnutls_datum_t *der = gnutls_certificate_get_peers(t->session, &count);
	if (!der || !count || !name || gnutls_x509_crt_init(&certificate) < 0)
		return false;
	bool yes = gnutls_x509_crt_import(certificate, &der[0], GNUTLS_X509_FMT_DER) == 0 && names(certificate, name);
	gnutls_x509_crt_deinit(certificate);
	return yes;
}

/* ---- the socket ---- */

bool tls_unsent(const struct tls *t) { return t->out_at < t->out_used; }

int tls_flush(struct tls *t)
{
	while (tls_unsent(t)) {
		ssize_t n = send(t->fd, t->out + t->out_at, t->out_used - t->out_at, MSG_NOSIGNAL);
		if (n < 0 && errno != EINTR)
			return -1;
		t->out_at += n > 0 ? (size_t)n : 0;
	}
	t->out_at = t->out_used = 0;
	return 0;
}

static bool in_time(const struct tls *t)
{
	struct pollfd p = { .fd = t->fd, .events = POLLIN };
	for (;;) {
		nsec_t left = t->deadline - clock_now();
		int n = left > 0 ? poll(&p, 1, (int)MIN(left / NSEC_PER_MSEC + 1, G_MAXINT)) : 0;
		if (n > 0)
			return true;
		if (n == 0 || errno != EINTR)
			return false;
	}
}

static ssize_t receive(struct tls *t, void *out, size_t n)
{
	for (;;) {
		if (t->deadline && !in_time(t)) {
			errno = EAGAIN;
			return -1;
		}
		ssize_t got = recv(t->fd, out, n, 0);
		if (got >= 0 || errno != EINTR)
			return got;
	}
}

static ssize_t pull(gnutls_transport_ptr_t data, void *to, size_t n)
{
	struct tls *t = data;
	if (t->in_at == t->in_used) {
		ssize_t got = -1;
		errno = EAGAIN;
		if (!t->content && (tls_flush(t) == 0 || errno == EAGAIN))    /* the other side may wait for it */
			got = receive(t, t->in, IN_BYTES);
		if (got <= 0) {
			t->ended = got == 0;
			gnutls_transport_set_errno(t->session, got ? errno : 0);
			return got;
		}
		t->in_at = 0;
		t->in_used = (size_t)got;
	}
	n = MIN(n, t->in_used - t->in_at);
	memcpy(to, t->in + t->in_at, n);
	t->in_at += n;
	return (ssize_t)n;
}

static ssize_t push(gnutls_transport_ptr_t data, const giovec_t *pieces, int count)
{
	struct tls *t = data;
	size_t taken = 0;
	for (int i = 0; i < count; i++)
		taken += pieces[i].iov_len;
	if (taken > TLS_OUT_MAX - t->out_used) {    /* only a peer that asks for answers and reads none */
		gnutls_transport_set_errno(t->session, EPIPE);
		return -1;
	}
	for (int i = 0; i < count; i++) {
		memcpy(t->out + t->out_used, pieces[i].iov_base, pieces[i].iov_len);
		t->out_used += pieces[i].iov_len;
	}
	return (ssize_t)taken;
}

/* ---- life ---- */

struct tls *tls_new(const struct tls_credentials *c, enum tls_side side, int fd, const char *expected)
{
	struct tls *t = g_new0(struct tls, 1);
	t->fd = fd;
	t->side = side;
	t->expected = g_strdup(expected);
	if (!c)
		return t;
	MUST("TLS1", side == TLS_ACCEPTS || expected);
	if (gnutls_init(&t->session, (side == TLS_CONNECTS ? GNUTLS_CLIENT : GNUTLS_SERVER) | GNUTLS_NO_TICKETS | GNUTLS_NO_SIGNAL) < 0 ||
	    gnutls_priority_set(t->session, c->priority) < 0 || gnutls_credentials_set(t->session, GNUTLS_CRD_CERTIFICATE, c->x509) < 0)
		g_error("tls: no memory");    /* as g_malloc */
	gnutls_certificate_server_set_request(t->session, GNUTLS_CERT_REQUIRE);
	gnutls_handshake_set_max_packet_length(t->session, HANDSHAKE_MAX);
	gnutls_session_set_ptr(t->session, t);
	gnutls_transport_set_ptr(t->session, t);
	gnutls_transport_set_pull_function(t->session, pull);
	gnutls_transport_set_vec_push_function(t->session, push);
	t->in = g_malloc(IN_BYTES);
	t->out = g_malloc(TLS_OUT_MAX);
	t->plain = g_malloc(TLS_RECORD);
	return t;
}

void tls_free(struct tls *t)
{
	if (!t)
		return;
	if (t->session)
		gnutls_deinit(t->session);
	g_free(t->expected);
	g_free(t->in);
	g_free(t->out);
	g_free(t->plain);
	g_free(t);
}

void tls_set_deadline(struct tls *t, nsec_t deadline) { t->deadline = deadline; }

const char *tls_why(const struct tls *t) { return *t->why ? t->why : "the connection has ended"; }

/* TLS5. A reason that is there already (of the certificate) says more. */
static void fail(struct tls *t, int e)
{
	t->failed = true;
	t->open = false;
	if (!*t->why)
		g_strlcpy(t->why, gnutls_strerror(e), sizeof t->why);
}

enum tls_progress tls_handshake(struct tls *t)
{
	int e = 0;
	if (t->failed)
		return TLS_FAILED;
	if (t->session && !t->open)
		do
			e = gnutls_handshake(t->session);
		while (e < 0 && e != GNUTLS_E_AGAIN && !gnutls_error_is_fatal(e));
	if (e == GNUTLS_E_AGAIN && t->ended)    /* in the middle of a record */
		e = GNUTLS_E_PREMATURE_TERMINATION;
	if (e < 0 && e != GNUTLS_E_AGAIN) {
		if (t->side == TLS_CONNECTS && gnutls_alert_send_appropriate(t->session, e) == 0)
			tls_flush(t);    /* who accepts learns why; who connects and is refused gets nothing */
		fail(t, e);
		return TLS_FAILED;
	}
	if (tls_flush(t) < 0 && errno != EAGAIN) {
		fail(t, GNUTLS_E_PUSH_ERROR);
		return TLS_FAILED;
	}
	if (e == GNUTLS_E_AGAIN)
		return TLS_MORE;
	MUST("TLS1", !t->session || gnutls_protocol_get_version(t->session) == GNUTLS_TLS1_3);
	t->open = true;
	return TLS_OPEN;
}

/* ---- in ---- */

static ssize_t broken(struct tls *t, int e)
{
	fail(t, e);
	errno = EPROTO;
	return -1;
}

/* One record's content, or what is left of one. */
static ssize_t read_record(struct tls *t, uint8_t *out, size_t n)
{
	ssize_t got;
	do
		got = gnutls_record_recv(t->session, out, n);
	while (got == GNUTLS_E_INTERRUPTED);
	t->over = got == 0 || got == GNUTLS_E_PREMATURE_TERMINATION || (got == GNUTLS_E_AGAIN && t->ended);
	if (t->over)
		return 0;
	if (got != GNUTLS_E_AGAIN)
		return got < 0 ? broken(t, (int)got) : got;
	errno = EAGAIN;
	return -1;
}

ssize_t tls_read(struct tls *t, void *out, size_t n)
{
	if (t->failed) {
		errno = EPROTO;
		return -1;
	}
	MUST("TLS1", t->open);
	if (!t->session)
		return receive(t, out, n);
	size_t got = 0;
	ssize_t k = 0;
	while (got < n && !t->over && (k = read_record(t, (uint8_t *)out + got, n - got)) > 0) {
		got += (size_t)k;
		t->content = true;
	}
	t->content = false;
	return got ? (ssize_t)got : k;
}

bool tls_pending(const struct tls *t)
{
	if (!t->session)
		return false;
	size_t here = t->in_used - t->in_at;
	const uint8_t *at = t->in + t->in_at;    /* between records: type, version, u16 length */
	return gnutls_record_check_pending(t->session) > 0 || (here >= 5 && here - 5 >= ((size_t)at[3] << 8 | at[4]));
}

/* ---- out ---- */

struct cursor { const struct iovec *piece; int left; size_t skip; };

/* The next bytes, at most a record's: in place if they are in one piece, else gathered. */
static const uint8_t *next_record(struct tls *t, struct cursor *c, size_t *ret_n)
{
	size_t used = 0;
	for (; c->left; c->piece++, c->left--, c->skip = 0) {
		const uint8_t *at = (const uint8_t *)c->piece->iov_base + c->skip;
		size_t n = MIN(c->piece->iov_len - c->skip, TLS_RECORD - used);
		if (n == TLS_RECORD) {
			c->skip += n;
			*ret_n = n;
			return at;
		}
		memcpy(t->plain + used, at, n);
		used += n;
		c->skip += n;
		if (used == TLS_RECORD)
			break;
	}
	*ret_n = used;
	return t->plain;
}

static ssize_t write_plain(struct tls *t, const struct iovec *pieces, int count)
{
	struct msghdr m = { .msg_iov = (struct iovec *)pieces, .msg_iovlen = (size_t)count };
	return sendmsg(t->fd, &m, MSG_NOSIGNAL);
}

ssize_t tls_write(struct tls *t, const struct iovec *pieces, int count)
{
	if (t->failed) {
		errno = EPROTO;
		return -1;
	}
	MUST("TLS1", t->open);
	if (!t->session)
		return write_plain(t, pieces, count);
	if (tls_flush(t) < 0)
		return -1;
	struct cursor c = { pieces, count, 0 };
	size_t taken = 0, n;
	for (const uint8_t *at; taken + TLS_RECORD <= TLS_BATCH && (at = next_record(t, &c, &n), n > 0); taken += n) {
		ssize_t k = gnutls_record_send(t->session, at, n);
		if (k != (ssize_t)n)
			return broken(t, k < 0 ? (int)k : GNUTLS_E_PUSH_ERROR);
	}
	MUST("TLS3", t->out_used <= TLS_OUT_MAX);
	if (tls_flush(t) < 0 && errno != EAGAIN && errno != ENOBUFS)
		return -1;
	return (ssize_t)taken;
}
