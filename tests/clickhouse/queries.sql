-- Questions that have the same answer wherever the rows are. Each is a line: where it runs (`there`: all of it in
-- ClickHouse; `split`: some of it here), then the SQL. `~` allows sums of doubles another order of additions,
-- `%` quantiles of more than 4,096 numbers what both promise.
there | SELECT count(*) FROM spans
there | SELECT count(*), count(parent_span_id), count(duration_ns) FROM spans
there | SELECT service_name, count(*) AS n FROM spans GROUP BY service_name ORDER BY n DESC, service_name
there | SELECT service_name, name, kind, count(*) FROM spans GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
there | SELECT DISTINCT kind, status_code FROM spans ORDER BY kind, status_code
there | SELECT name FROM spans WHERE service_name = 'edge' ORDER BY start_time
there | SELECT trace_id, span_id, parent_span_id, start_time, end_time, duration_ns FROM spans WHERE service_name LIKE 'edge%' ORDER BY span_id
there | SELECT hex(trace_id) AS t, hex(span_id) FROM spans WHERE trace_id = '5b8efff798038103d269b633813fc60c' ORDER BY 2
there | SELECT count(*) FROM spans WHERE trace_id IN ('5b8efff798038103d269b633813fc60c', '5b8efff798038103d269b633813fc60d')
there | SELECT count(*) FROM spans WHERE trace_id LIKE '5b8e%'
there | SELECT count(*) FROM spans WHERE parent_span_id IS NULL
there | SELECT service_name, max(duration_ns), min(duration_ns), sum(duration_ns) FROM spans GROUP BY service_name ORDER BY service_name
there~| SELECT service_name, avg(duration_ns) FROM spans GROUP BY service_name ORDER BY service_name
there | SELECT service_name, quantile(0.5, duration_ns), quantile(0.99, duration_ns), quantile(0, duration_ns), quantile(1, duration_ns) FROM spans WHERE name <> 'x' AND service_name IN ('edge', 'cart', 'payment') GROUP BY service_name ORDER BY service_name
there%| SELECT a.service_name, quantile(0.5, a.duration_ns + b.duration_ns), quantile(0.99, a.duration_ns + b.duration_ns), quantile(1, a.duration_ns) FROM spans a JOIN spans b ON a.service_name = b.service_name WHERE a.service_name IN ('cart', 'frontend') GROUP BY 1 ORDER BY 1
there | SELECT time_bucket('10s', start_time) AS t, count(*) FROM spans GROUP BY t ORDER BY t
there | SELECT time_bucket('1m', start_time, TIMESTAMP '2020-01-01T00:00:07Z') AS t, service_name, count(*) FROM spans GROUP BY 1, 2 ORDER BY 1, 2
there | SELECT date_trunc('minute', start_time) AS t, count(*) FILTER (WHERE status_code = 'ERROR') AS errors FROM spans GROUP BY t ORDER BY t
there | SELECT count(*) FROM spans WHERE start_time >= now() - INTERVAL '1 day'
there | SELECT service_name, count(*) AS n FROM spans GROUP BY service_name HAVING count(*) > 20 ORDER BY service_name
there | SELECT attributes['http.response.status_code'] AS code, count(*) FROM spans GROUP BY 1 ORDER BY 1 NULLS FIRST
there | SELECT attributes['mixed'], attributes['number'], attributes['flag'], attributes['text'] FROM spans WHERE service_name = 'edge' ORDER BY span_id
there | SELECT attributes['ratio'] FROM spans WHERE service_name = 'edge' ORDER BY span_id
there | SELECT span_id FROM spans WHERE attributes['ratio'] > 0.2 ORDER BY span_id
there | SELECT span_id FROM spans WHERE attributes['ratio'] < 5.5 ORDER BY attributes['ratio'], span_id
there | SELECT count(*) FROM spans WHERE attributes['http.response.status_code'] >= 500
there | SELECT count(*) FROM spans WHERE attributes['http.response.status_code'] = 500
there | SELECT count(*) FROM spans WHERE attributes['text'] = 'O''Brien \ 100%'
there | SELECT count(*) FROM spans WHERE attributes['text'] = ''
there | SELECT count(*) FROM spans WHERE attributes['text'] <> ''
there | SELECT count(*) FROM spans WHERE NOT (attributes['flag'])
there | SELECT count(*) FROM spans WHERE attributes['flag'] OR attributes['text'] IS NOT NULL
there | SELECT count(*) FROM spans WHERE attributes['never.seen'] IS NULL
there | SELECT attributes['nothing'], count(*) FROM spans WHERE service_name = 'edge' GROUP BY 1
there | SELECT resource_attributes['replicas'], resource_attributes['canary'], resource_attributes['mixed'] FROM spans WHERE service_name LIKE 'edge%' ORDER BY span_id
there | SELECT scope_name, scope_version, count(*) FROM spans WHERE service_name LIKE 'edge%' GROUP BY 1, 2 ORDER BY 1 NULLS LAST
there | SELECT name FROM spans WHERE name LIKE '%"quoted"%' OR name ILIKE '%CHECKOUT%' ORDER BY name, span_id LIMIT 5
there | SELECT name, duration_ns FROM spans WHERE duration_ns IS NOT NULL ORDER BY duration_ns DESC, span_id LIMIT 10
there | SELECT name, duration_ns FROM spans WHERE service_name = 'cart' ORDER BY duration_ns, span_id LIMIT 5 OFFSET 3
there | SELECT CASE WHEN duration_ns > 100000000 THEN 'slow' WHEN duration_ns IS NULL THEN 'open' ELSE 'fast' END AS class, count(*) FROM spans GROUP BY 1 ORDER BY 1
there | SELECT coalesce(parent_span_id, span_id) AS id FROM spans WHERE service_name = 'edge' ORDER BY span_id
there | SELECT service_name || '/' || name AS full_name FROM spans WHERE service_name = 'edge' ORDER BY 1
there | SELECT duration_ns / 1000, duration_ns % 7, duration_ns + 1, duration_ns * 2 FROM spans WHERE service_name = 'edge' ORDER BY span_id
there | SELECT duration_ns / 1e6 AS ms FROM spans WHERE service_name = 'edge' ORDER BY span_id
there | SELECT count(DISTINCT trace_id), count(DISTINCT service_name) FROM spans
there | SELECT p.service_name, c.service_name, count(*) FROM spans c JOIN spans p ON c.parent_span_id = p.span_id AND c.trace_id = p.trace_id GROUP BY 1, 2 ORDER BY 1, 2
there | SELECT c.name, p.name FROM spans c LEFT JOIN spans p ON c.parent_span_id = p.span_id WHERE c.service_name LIKE 'edge%' ORDER BY c.span_id
there | SELECT count(*) FROM spans WHERE trace_id IN (SELECT trace_id FROM logs WHERE trace_id IS NOT NULL)
there | SELECT s.service_name, count(*) FROM logs l JOIN spans s ON l.span_id = s.span_id GROUP BY 1 ORDER BY 1
there | SELECT service_name, n FROM (SELECT service_name, count(*) AS n FROM spans GROUP BY 1) AS t WHERE n > 10 ORDER BY n, service_name
there | SELECT avg(n), max(n) FROM (SELECT trace_id, count(*) AS n FROM spans GROUP BY trace_id) AS t
there | SELECT 'span' AS what, count(*) FROM spans UNION ALL SELECT 'log', count(*) FROM logs
there | SELECT severity_number, severity_text, count(*) FROM logs GROUP BY 1, 2 ORDER BY 1, 2
there | SELECT time, observed_time, time_inferred, body, event_name, trace_id FROM logs WHERE service_name = 'edge' ORDER BY time
there | SELECT body FROM logs WHERE has_token(body, 'declined') AND service_name = 'edge' ORDER BY time
there | SELECT count(*) FROM logs WHERE body LIKE '%declined%'
there | SELECT count(*) FROM logs WHERE body ILIKE '%DECLINED%' AND service_name = 'edge'
there | SELECT count(*) FROM logs WHERE body ILIKE '%kelvin%k%' AND service_name = 'edge'
there | SELECT count(*) FROM logs WHERE body NOT LIKE '%a%'
there | SELECT count(*), count(body) FROM logs WHERE body = '' OR body IS NULL
there | SELECT body FROM logs WHERE starts_with(body, 'payment') AND contains(body, '50%') AND service_name = 'edge'
there | SELECT character_length(body), octet_length(body) FROM logs WHERE service_name = 'edge' ORDER BY time
there | SELECT metric_name, metric_unit, metric_type, temporality, count(*) FROM metric_points GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
there | SELECT attributes['case'], value, value_int FROM metric_points WHERE metric_name = 'edge.gauge' ORDER BY time
there | SELECT attributes['case'] FROM metric_points WHERE metric_name = 'edge.gauge' ORDER BY value NULLS FIRST, time
there | SELECT attributes['case'] FROM metric_points WHERE metric_name = 'edge.gauge' AND value > 1.0 ORDER BY time
there | SELECT attributes['case'] FROM metric_points WHERE metric_name = 'edge.gauge' AND value <= 1.5 ORDER BY time
there | SELECT attributes['case'] FROM metric_points WHERE metric_name = 'edge.gauge' AND value >= 0 ORDER BY time
there | SELECT attributes['case'] FROM metric_points WHERE metric_name = 'edge.gauge' AND value < 0 ORDER BY time
there | SELECT attributes['case'] FROM metric_points WHERE metric_name = 'edge.gauge' AND value = 0 ORDER BY time
there | SELECT attributes['case'] FROM metric_points WHERE metric_name = 'edge.gauge' AND value <> 1.5 ORDER BY time
there | SELECT quantile(0.5, value), min(value), max(value) FROM metric_points WHERE metric_name = 'edge.gauge' AND attributes['case'] <> 'nan'
there | SELECT value, attributes['n'] FROM metric_points WHERE metric_name = 'edge.ties' ORDER BY value DESC, attributes['n'] DESC LIMIT 2
there~| SELECT service_name, sum(value) FROM metric_points WHERE service_name NOT LIKE 'edge%' GROUP BY 1 ORDER BY 1
there | SELECT time_bucket('1m', time) AS t, metric_name, max(value) FROM metric_points WHERE service_name = 'cart' GROUP BY 1, 2 ORDER BY 1, 2
there | SELECT metric_name, count(*), sum(count), min(min), max(max) FROM metric_histograms WHERE metric_name LIKE 'edge%' GROUP BY 1 ORDER BY 1
there | SELECT sample_type, sample_unit, count(*) FROM profiles GROUP BY 1, 2 ORDER BY 1, 2
there | SELECT signal, reason, sum(received), sum(stored), sum(rejected) FROM ingest_ledger GROUP BY 1, 2 ORDER BY 1, 2
there | SELECT name, count(*) FROM span_events GROUP BY name ORDER BY name
there | SELECT time, name, attributes['exception.message'], attributes['retries'] FROM span_events WHERE service_name = 'edge' ORDER BY time
there | SELECT linked_trace_id, linked_span_id, attributes['why'] FROM span_links WHERE service_name = 'edge'
there | SELECT span_name, count(*) FROM span_events WHERE name = 'exception' AND span_start_time > TIMESTAMP '2020-01-01T00:00:00Z' GROUP BY 1 ORDER BY 1
there | SELECT attributes FROM spans WHERE service_name = 'edge' ORDER BY span_id
there | SELECT * FROM spans WHERE service_name LIKE 'edge%'
there | SELECT * FROM logs WHERE service_name = 'edge'
there | SELECT * FROM metric_points WHERE service_name = 'edge'
split | SELECT * FROM metric_histograms WHERE service_name = 'edge'
there | SELECT * FROM profiles LIMIT 100000
split | SELECT attributes_json(attributes), attribute_keys(attributes) FROM spans WHERE service_name = 'edge' ORDER BY span_id
split | SELECT attributes['twice'], attributes['many'] FROM spans WHERE service_name = 'edge' ORDER BY span_id
there | SELECT scope_attributes['team'], resource_schema_url FROM spans WHERE service_name = 'edge' ORDER BY span_id
split | SELECT name, duration(duration_ns) FROM spans WHERE service_name = 'cart' ORDER BY duration_ns DESC, span_id LIMIT 3
split | SELECT name FROM spans WHERE name ~ '^(é|no) ' ORDER BY name
split | SELECT upper(service_name), count(*) FROM spans GROUP BY 1 ORDER BY 1
split | SELECT metric_name, quantile(0.9, histogram) FROM metric_histograms WHERE metric_name LIKE 'edge%' AND metric_type <> 'SUMMARY' GROUP BY metric_name ORDER BY 1
split | SELECT histogram_merge(histogram) FROM metric_histograms WHERE metric_name = 'edge.exponential'
split | SELECT metric_name, histogram_quantile(0.5, histogram_merge(histogram)) FROM metric_histograms WHERE temporality = 'CUMULATIVE' GROUP BY metric_name ORDER BY 1
split | SELECT service_name, sum(r) FROM (SELECT service_name, increase(value, time) AS r FROM metric_points WHERE temporality = 'CUMULATIVE' AND value_int IS NOT NULL GROUP BY service_name, series_id) GROUP BY service_name ORDER BY 1
split | SELECT name, row_number() OVER (PARTITION BY service_name ORDER BY start_time, span_id) AS n FROM spans WHERE service_name = 'edge' ORDER BY n
split | SELECT service_name, start_time, duration_ns - lag(duration_ns) OVER (PARTITION BY service_name ORDER BY start_time, span_id) AS d FROM spans WHERE service_name IN ('edge', 'ad') ORDER BY 1, 2, span_id LIMIT 50
split | SELECT service_name, sum(n) OVER (ORDER BY service_name) FROM (SELECT service_name, count(*) AS n FROM spans GROUP BY service_name) ORDER BY 1
split | SELECT tree, position, depth, is_orphan, duration_ns FROM trace('5b8efff798038103d269b633813fc60c') ORDER BY position
split | SELECT service_name, array_agg(name ORDER BY span_id) FROM spans WHERE service_name LIKE 'edge%' GROUP BY service_name ORDER BY 1
split | SELECT service_name, kind, count(*) FROM spans WHERE service_name LIKE 'edge%' GROUP BY ROLLUP (service_name, kind) ORDER BY 1 NULLS FIRST, 2 NULLS FIRST
there | SELECT count(*) FROM span_events
there | SELECT n > 5 AS many FROM (SELECT count(*) AS n FROM spans) AS t
there | SELECT count(*) FROM (SELECT DISTINCT service_name, name FROM spans) AS t
there | SELECT name FROM (SELECT name, span_id FROM spans WHERE service_name = 'cart' ORDER BY span_id LIMIT 5) AS t ORDER BY name
there | SELECT service_name FROM spans GROUP BY service_name HAVING max(duration_ns) > 1000000 ORDER BY service_name
there | SELECT count(*), sum(duration_ns), max(name), avg(duration_ns), quantile(0.5, duration_ns) FROM spans WHERE service_name = 'nobody'
split | SELECT count(*) FROM spans WHERE duration_ns > (SELECT avg(duration_ns) FROM spans)
split | SELECT service_name FROM spans EXCEPT SELECT service_name FROM spans WHERE service_name LIKE 'c%'
split | SELECT * FROM span_metrics
split | SELECT * FROM service_edges WHERE server_inferred
split | SELECT * FROM service_edges WHERE NOT server_inferred
split | SELECT count(*), sum(count), sum(errors), sum(duration_sum_ns), min(duration_min_ns), max(duration_max_ns) FROM span_metrics
split | SELECT service_name, sum(count), sum(errors) FROM span_metrics GROUP BY service_name ORDER BY service_name
split | SELECT service_name, kind, quantile(0.5, duration), quantile(0.99, duration) FROM span_metrics WHERE kind = 'SERVER' GROUP BY 1, 2 ORDER BY 1, 2
split | SELECT time_bucket('1m', time) AS minute, service_name, sum(count) AS requests, sum(errors) FROM span_metrics WHERE kind = 'SERVER' AND time > now() - INTERVAL '1 hour' GROUP BY 1, 2 ORDER BY 1, 2
split | SELECT service_version, environment, sum(count) FROM span_metrics WHERE service_name IN ('payment', 'cart', 'edge') GROUP BY 1, 2 ORDER BY 1, 2
split | SELECT span_name, status_code, histogram_merge(duration) FROM span_metrics WHERE service_name LIKE 'edge%' GROUP BY 1, 2 ORDER BY 1, 2
split | SELECT time, service_name, exemplar_trace_ids FROM span_metrics WHERE errors > 0 ORDER BY time, service_name, span_name
split | SELECT client, server, connection_type, sum(count), sum(errors), sum(client_errors), sum(client_duration_sum_ns) FROM service_edges GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
split | SELECT client, server, quantile(0.95, duration), quantile(0.95, client_duration) FROM service_edges WHERE server = 'payment' OR client = 'payment' GROUP BY 1, 2 ORDER BY 1, 2
split | SELECT time_bucket('1m', time), connection_type, sum(count) FROM service_edges WHERE time >= now() - INTERVAL '1 day' GROUP BY 1, 2 ORDER BY 1, 2
split | SELECT count(*) FROM service_edges WHERE time = (SELECT min(time) FROM service_edges)
split | SELECT DISTINCT m.service_name FROM span_metrics m JOIN service_edges e ON m.service_name = e.client ORDER BY 1
split | SELECT m.service_name, m.n, s.n FROM (SELECT service_name, sum(count) AS n FROM span_metrics GROUP BY 1) m JOIN (SELECT service_name, count(*) AS n FROM spans GROUP BY 1) s ON m.service_name = s.service_name ORDER BY 1
